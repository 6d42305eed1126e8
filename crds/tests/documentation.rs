//! The pages of the documentation hold together.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn pages_below(folder: &Path, pages: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages_below(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}

/// Targets of the links on a page that lead to files of the repository, without the anchor.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
        .collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let root = root();
    let mut pages = vec![root.join("README.md")];
    pages_below(&root.join("docs"), &mut pages);
    pages_below(&root.join("charts"), &mut pages);
    let mut dead = Vec::new();
    let mut followed = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap();
        for target in links(&text) {
            followed += 1;
            if !page.parent().unwrap().join(target).exists() {
                dead.push(format!("{} -> {target}", page.strip_prefix(&root).unwrap().display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links: {dead:#?}");
    assert!(followed > 10, "only {followed} links were found");
}

#[test]
fn every_page_can_be_found_from_the_index() {
    let root = root();
    let index = fs::read_to_string(root.join("docs/README.md")).unwrap();
    let linked = links(&index);
    let mut pages = Vec::new();
    pages_below(&root.join("docs"), &mut pages);
    let missing: Vec<_> = pages
        .iter()
        .map(|page| page.strip_prefix(root.join("docs")).unwrap().to_string_lossy().into_owned())
        .filter(|page| page != "README.md" && !page.starts_with("examples/"))
        .filter(|page| !linked.contains(&page.as_str()))
        .collect();
    assert!(missing.is_empty(), "add to docs/README.md: {missing:?}");
}
