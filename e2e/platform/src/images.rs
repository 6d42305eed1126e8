//! Container images, built without a registry and put into the platform's containerd.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cache::{self, Key};
use crate::command::Run;
use crate::layout::{CLICKHOUSE_VERSION, KAFKA_VERSION, Layout};
use crate::node::ctr;
use crate::toolchain;

/// The image that holds a pod's namespaces. Its name is in containerd's configuration.
pub const PAUSE: &str = "localhost/penstock/pause:1";

/// A name within [`buildah`]'s storage only.
const BASE: &str = "localhost/penstock/base:1";
const TOOLCHAIN: &str = "localhost/penstock/prebuilt:1";

/// An image as a file that containerd can import.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The image's full name with its tag.
    pub name: String,
    /// The archive.
    pub file: PathBuf,
}

/// The images that the cluster itself runs.
#[derive(Debug)]
pub struct PlatformImages {
    /// Holds a pod's namespaces.
    pub pause: Archive,
    /// The cluster's DNS.
    pub coredns: Archive,
    /// Serves the resource metrics API.
    pub metrics_server: Archive,
    /// The broker.
    pub kafka: Archive,
    /// The database.
    pub clickhouse: Archive,
    /// Ends TLS in front of the database.
    pub tls: Archive,
}

fn buildah(layout: &Layout) -> Result<Run> {
    let policy = layout.cache.join("buildah/policy.json");
    if !policy.exists() {
        crate::command::write_atomically(&policy, br#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    }
    Ok(Run::new("buildah")
        .arg("--root")
        .arg(layout.cache.join("buildah/storage"))
        .arg("--runroot")
        .arg(layout.cache.join("buildah/run"))
        .args(["--storage-driver", "overlay"])
        // A shell in a chroot needs no network, and the builder is given none.
        .env("BUILDAH_ISOLATION", "chroot"))
}

/// Builds an image from a context, with build arguments, into buildah's storage.
fn build(
    layout: &Layout,
    context: &Path,
    dockerfile: &Path,
    name: &str,
    target: Option<&str>,
    args: &[(&str, &str)],
) -> Result<()> {
    let mut run = buildah(layout)?
        .arg("bud")
        .arg("--signature-policy")
        .arg(layout.cache.join("buildah/policy.json"))
        .args([
            "--isolation",
            "chroot",
            "--pull-never",
            "--layers=false",
            // The same content has the same digest, whenever it is built.
            "--timestamp=0",
            "--format",
            "docker",
            "--tag",
            name,
            "--file",
        ])
        .arg(dockerfile);
    if let Some(target) = target {
        run = run.args(["--target", target]);
    }
    for (arg, value) in args {
        run = run.arg("--build-arg").arg(format!("{arg}={value}"));
    }
    run.arg(context).log(layout.cache.join("images.log")).quiet()
}

fn push(layout: &Layout, name: &str, file: &Path) -> Result<()> {
    let _ = std::fs::remove_file(file);
    buildah(layout)?
        .arg("push")
        .arg("--signature-policy")
        .arg(layout.cache.join("buildah/policy.json"))
        .arg("--disable-compression")
        .arg(name)
        .arg(format!("docker-archive:{}:{name}", file.display()))
        .log(layout.cache.join("images.log"))
        .quiet()
}

/// Puts a base into buildah's storage unless it is there; storage and cache may be lost apart from each other.
fn ensure_stored(
    layout: &Layout,
    name: &str,
    dockerfile: &Path,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    if buildah(layout)?.args(["images", "--quiet", name]).quiet().is_ok() {
        return Ok(());
    }
    let context = layout.cache.join("buildah/context");
    let _ = std::fs::remove_dir_all(&context);
    std::fs::create_dir_all(&context)?;
    fill(&context)?;
    build(layout, &context, dockerfile, name, None, &[])?;
    let _ = std::fs::remove_dir_all(&context);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // A hard link where it can be had: libchdb.so alone is half a gigabyte.
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    Run::new("cp")
        .args(["-a", "--link"])
        .arg(format!("{}/.", from.display()))
        .arg(to)
        .quiet()
        .or_else(|_| Run::new("cp").arg("-a").arg(format!("{}/.", from.display())).arg(to).quiet())
}

fn script(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).context("making a script executable")
}

fn compile(source: &Path, to: &Path, flags: &[&str]) -> Result<()> {
    Run::new("gcc").args(["-O2", "-s", "-Wall", "-Werror", "-o"]).arg(to).arg(source).args(flags).quiet()
}

/// Which of the platform's images, with everything that goes into it.
struct Recipe<'a> {
    name: &'static str,
    /// The image's version; `None` takes the fixed name of [`PAUSE`].
    version: Option<&'a str>,
    /// Folders in the cache whose names tell their content.
    inputs: Vec<&'a Path>,
    on_base: bool,
}

fn archive(layout: &Layout, recipe: &Recipe<'_>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Archive> {
    let sources = layout.sources.join("images").join(recipe.name);
    let mut key = Key::of("image").with(recipe.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&sources)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    for file in &files {
        key = key.with_file(file)?;
    }
    for input in &recipe.inputs {
        key = key.with(&input.file_name().unwrap_or_default().to_string_lossy());
    }
    let mut name = String::new();
    let dir = cache::ensure(layout, key, |new| {
        let context = new.join("context");
        std::fs::create_dir_all(&context)?;
        fill(&context)?;
        let local = format!("localhost/penstock/{}:new", recipe.name);
        let args: &[(&str, &str)] = if recipe.on_base { &[("BASE_IMAGE", BASE)] } else { &[] };
        build(layout, &context, &sources.join("Dockerfile"), &local, None, args)?;
        // The key names the folder, and the tag is the key: a changed image has another name, so that pods roll.
        let hash = new
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("image-"))
            .and_then(|name| name.strip_suffix(".new"))
            .context("the cache names its folders")?;
        name = recipe.version.map_or_else(
            || PAUSE.to_owned(),
            |version| format!("localhost/penstock/{}:{version}-{}", recipe.name, &hash[..8]),
        );
        buildah(layout)?.args(["tag", &local, &name]).quiet()?;
        push(layout, &name, &new.join("image.tar"))?;
        buildah(layout)?.args(["rmi", &local, &name]).quiet()?;
        std::fs::write(new.join("name"), &name)?;
        std::fs::remove_dir_all(&context).context("removing the build's context")
    })
    .with_context(|| format!("the image of {}", recipe.name))?;
    let name = std::fs::read_to_string(dir.join("name"))
        .with_context(|| format!("reading the image's name in {}", dir.display()))?;
    Ok(Archive { name, file: dir.join("image.tar") })
}

/// Makes the images that the cluster itself runs.
///
/// # Errors
/// Something cannot be fetched or built; the log is named.
pub fn platform(layout: &Layout, built: &toolchain::Built) -> Result<PlatformImages> {
    let base = toolchain::base(layout)?;
    let sources = layout.sources.join("images");
    ensure_stored(layout, BASE, &sources.join("base/Dockerfile"), |context| {
        copy_tree(&base.join("root"), &context.join("root"))
    })?;

    let pause = archive(
        layout,
        &Recipe { name: "pause", version: None, inputs: vec![], on_base: false },
        |context| compile(&sources.join("pause/pause.c"), &context.join("pause"), &["-static"]),
    )?;
    let tools = built.tools.as_path();
    let coredns = archive(
        layout,
        &Recipe { name: "coredns", version: Some("1"), inputs: vec![tools], on_base: false },
        |context| copy(&tools.join("coredns"), &context.join("coredns")),
    )?;
    let metrics_server = archive(
        layout,
        &Recipe { name: "metrics-server", version: Some("1"), inputs: vec![tools], on_base: false },
        |context| copy(&tools.join("metrics-server"), &context.join("metrics-server")),
    )?;

    let (jars, java) = (toolchain::kafka(layout)?, toolchain::java(layout)?);
    let kafka = archive(
        layout,
        &Recipe {
            name: "kafka",
            version: Some(KAFKA_VERSION),
            inputs: vec![&base, &jars, &java],
            on_base: true,
        },
        |context| {
            let root = context.join("root");
            copy_tree(&jars.join("libs"), &root.join("opt/kafka/libs"))?;
            copy_tree(&java.join("java"), &root.join("opt/java"))?;
            copy(&base.join("busybox"), &root.join("bin/busybox"))?;
            for applet in ["sh", "ls", "cat", "grep", "ps", "kill", "sleep", "env", "nslookup", "nc", "wget"]
            {
                symlink("busybox", root.join("bin").join(applet))?;
            }
            script(&sources.join("kafka/kafka.sh"), &root.join("opt/kafka/bin/kafka.sh"))?;
            for name in [
                "server-start",
                "storage",
                "topics",
                "configs",
                "acls",
                "consumer-groups",
                "console-consumer",
                "console-producer",
                "get-offsets",
                "delete-records",
                "transactions",
                "dump-log",
            ] {
                symlink("kafka.sh", root.join(format!("opt/kafka/bin/kafka-{name}.sh")))?;
            }
            Ok(())
        },
    )?;

    let library = toolchain::clickhouse(layout)?;
    let clickhouse = archive(
        layout,
        &Recipe {
            name: "clickhouse",
            version: Some(CLICKHOUSE_VERSION),
            inputs: vec![&base, &library],
            on_base: true,
        },
        |context| {
            copy(&library.join("libchdb.so"), &context.join("libchdb.so"))?;
            std::fs::create_dir_all(context.join("data"))?;
            std::os::unix::fs::chown(context.join("data"), Some(101), Some(101))?;
            compile(&sources.join("clickhouse/launcher.c"), &context.join("clickhouse-server"), &["-ldl"])
        },
    )?;

    let tls = archive(
        layout,
        &Recipe { name: "tls", version: Some("1"), inputs: vec![], on_base: false },
        |context| {
            Run::new("go")
                .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
                .arg(context.join("tls"))
                .arg(sources.join("tls/main.go"))
                .env("CGO_ENABLED", "0")
                .quiet()
        },
    )?;
    Ok(PlatformImages { pause, coredns, metrics_server, kafka, clickhouse, tls })
}

/// Imports an image unless it was imported from this very file.
///
/// # Errors
/// containerd refuses the archive.
pub fn import(layout: &Layout, archive: &Archive) -> Result<()> {
    let present =
        ctr(layout).args(["images", "list", "--quiet", &format!("name=={}", archive.name)]).output()?;
    if present.trim() == archive.name {
        return Ok(());
    }
    ctr(layout).args(["images", "import"]).arg(&archive.file).quiet()
}

/// One image of ours, as it was imported.
#[derive(Debug, Serialize)]
pub struct Imported {
    /// The name that manifests use.
    pub name: String,
    /// The digest of its configuration: another digest, other content.
    pub id: String,
}

/// Builds the images of the operator and of the data plane from the repository's Dockerfile and the binaries in
/// `target/release`, and imports them under the given tag.
///
/// # Errors
/// A binary is missing, the Dockerfile fails, or containerd is not up.
pub fn ours(layout: &Layout, tag: &str) -> Result<Vec<Imported>> {
    let base = toolchain::base(layout)?;
    let sources = layout.sources.join("images");
    ensure_stored(layout, BASE, &sources.join("base/Dockerfile"), |context| {
        copy_tree(&base.join("root"), &context.join("root"))
    })?;
    ensure_stored(layout, TOOLCHAIN, &sources.join("toolchain/Dockerfile"), |context| {
        copy(&base.join("busybox"), &context.join("busybox"))?;
        for name in ["cargo", "apt-get"] {
            script(&sources.join("toolchain/nothing-to-do.sh"), &context.join(name))?;
        }
        Ok(())
    })?;

    let repository = layout.repository();
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository.join("target"), PathBuf::from)
        .join("release");
    let context = layout.run().join("image-context");
    let _ = std::fs::remove_dir_all(&context);
    std::fs::create_dir_all(context.join("target/release"))?;
    let binaries = ["penstock-operator", "capture", "consumer", "transformation", "export"];
    let missing: Vec<&str> = binaries.into_iter().filter(|binary| !target.join(binary).exists()).collect();
    if !missing.is_empty() {
        bail!("{} not in {}: run `cargo build --release` first", missing.join(", "), target.display());
    }
    for binary in binaries {
        Run::new("strip")
            .arg("-o")
            .arg(context.join("target/release").join(binary))
            .arg(target.join(binary))
            .quiet()?;
    }

    let mut imported = Vec::new();
    for image in ["operator", "pipeline"] {
        let name = format!("localhost/penstock/{image}:{tag}");
        build(
            layout,
            &context,
            &repository.join("Dockerfile"),
            &name,
            Some(image),
            &[("BUILD_IMAGE", TOOLCHAIN), ("BASE_IMAGE", BASE)],
        )?;
        let id =
            buildah(layout)?.args(["images", "--quiet", "--no-trunc", &name]).output()?.trim().to_owned();
        let file = layout.run().join(format!("{image}.tar"));
        push(layout, &name, &file)?;
        // What pods run is kept by their snapshots; without this each build would leave one more image behind.
        let before = ctr(layout).args(["images", "list", "--quiet"]).output()?;
        ctr(layout).args(["images", "import"]).arg(&file).quiet()?;
        let marker = layout.data().join(format!("image-{image}-{tag}"));
        if let Ok(old) = std::fs::read_to_string(&marker)
            && old != id
            && before.lines().any(|line| line == old)
        {
            let _ = ctr(layout).args(["images", "remove", &old]).quiet();
        }
        std::fs::write(&marker, &id)?;
        std::fs::remove_file(&file)?;
        imported.push(Imported { name, id });
    }
    // Images of earlier builds that no name points to any more.
    let _ = buildah(layout)?.args(["rmi", "--prune"]).quiet();
    let _ = std::fs::remove_dir_all(&context);
    Ok(imported)
}
