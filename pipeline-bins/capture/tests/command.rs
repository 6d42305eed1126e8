//! The command line of the real binary.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{fs, process::Command};

fn check(config: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    fs::write(&path, config).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_capture")).arg("--check-config").arg(path).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn check_config_says_ok_or_where_and_why_not() {
    let config = include_str!("config.yaml");
    let (code, text) = check(config);
    assert!(code == Some(0) && text.starts_with("OK: "), "{code:?} {text}");
    let cases = [
        (config.replace("lingerMs: 5", "lingerMs: 5\n  lingreMs: 5"), "limits: unknown field `lingreMs`"),
        (config.replace("topic: captured\n", ""), "missing field `topic`"),
        (config.replace("lingerMs: 5\n", "lingerMs: -5\n"), "limits.lingerMs"),
        (config.replace("maxConcurrentRequests: 64", "maxConcurrentRequests: 0"), "write a positive number"),
        ("not: [closed".to_owned(), "is not valid"),
    ];
    for (config, expected) in cases {
        let (code, text) = check(&config);
        assert!(code == Some(2) && text.contains(expected), "{code:?} {text}");
    }
}

#[test]
fn help_and_version_are_told_and_nonsense_is_refused() {
    let run = |argument: &str| Command::new(env!("CARGO_BIN_EXE_capture")).arg(argument).output().unwrap();
    assert!(String::from_utf8(run("--help").stdout).unwrap().contains("--check-config"));
    assert!(String::from_utf8(run("--version").stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    assert!(!run("--nonsense").status.success());
}
