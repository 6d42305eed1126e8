//! Writes what is generated from the API types: the definition as YAML, the template of the chart, and the reference.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use penstock_crds::generated::{self, COMMAND};

/// Write the files that are generated from the API types.
#[derive(Parser)]
#[command(name = "crdgen")]
struct Arguments {
    /// Write nothing; say which files are stale and exit with 1 if any is.
    #[arg(long)]
    check: bool,
    /// Print the definition as YAML instead of writing files.
    #[arg(long, conflicts_with = "check")]
    print: bool,
    /// The root of the repository.
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.print {
        print!("{}", generated::definition_yaml());
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.check {
        let stale = generated::stale(&arguments.root);
        for file in &stale {
            eprintln!("{} is not what the types in crds/ generate; run: {COMMAND}", file.display());
        }
        return Ok(if stale.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    for file in generated::files() {
        let path = arguments.root.join(file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        fs::write(&path, file.content).with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
