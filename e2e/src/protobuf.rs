//! `cargo e2e protobuf`: objects of every built-in kind, made up by upstream's own fuzzer, read and written by `kube-protobuf` and by
//! upstream's codec; both must mean the same. With `--write` the table of the crate is made anew from upstream's types.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::programs::{Outputs, Profile, build_upstream};
use crate::step::{Steps, output};

const PEER: &str = "protobuf";
const TABLE: &str = "controllers/protobuf/schema.txt";
/// Differences that are shown.
const SHOWN: usize = 10;

#[derive(Args)]
pub struct ProtobufOptions {
    /// Objects of every kind.
    #[arg(long, default_value_t = 20)]
    objects: u32,
    /// Where the making up begins; the same seed makes the same objects.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Writes the table of kinds and messages anew.
    #[arg(long)]
    write: bool,
}

/// # Errors
/// A program cannot be built or run, the table is not upstream's, or an object differs.
pub fn run(options: &ProtobufOptions) -> Result<()> {
    let outputs = Outputs::find().with_profile(Profile::Dev);
    let steps = Steps::new(outputs.logs())?;
    build_upstream(&steps, &outputs, &[PEER])?;
    let peer = outputs.upstream(PEER);
    let table = output(Command::new(&peer).arg("table"))?;
    let path = outputs.workspace.join(TABLE);
    if options.write {
        fs::write(&path, &table).with_context(|| path.display().to_string())?;
    }
    ensure!(
        fs::read_to_string(&path)?.trim() == table.trim(),
        "{TABLE} is not what upstream's types say: cargo e2e protobuf --write"
    );
    let step = steps.start("build the transcoder", None)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = [
        "build",
        "--package",
        "kube-protobuf",
        "--example",
        "transcode",
    ];
    step.run(
        Command::new(cargo)
            .current_dir(&outputs.workspace)
            .args(build),
    )?;
    step.done();

    let (objects, seed) = (options.objects.to_string(), options.seed.to_string());
    let made = output(Command::new(&peer).args(["random", &objects, &seed]))?;
    let ours = through(&mut Command::new(outputs.ours("examples/transcode")), &made)?;
    let written: Vec<_> = ours.lines().filter_map(|l| l.split_once('\t')).collect();
    let input: String = written
        .iter()
        .map(|(_, bytes)| format!("{bytes}\n"))
        .collect();
    let read = through(Command::new(&peer).arg("read"), &input)?;
    let mut differences = Vec::new();
    for ((made, (told, _)), read) in made.lines().zip(&written).zip(read.lines()) {
        let kind = made.split('\t').nth(2).unwrap_or_default();
        if *told != "same" {
            differences.push(format!("read: {told}"));
        }
        let wanted = made.rsplit('\t').next().unwrap_or_default();
        let same = matches!(
            (meaning(read), meaning(wanted)),
            (Some(read), Some(wanted)) if read == wanted
        );
        if !same {
            differences.push(format!("written: {kind}: {read} is not {wanted}"));
        }
    }
    let count = made.lines().count();
    ensure!(
        count > 0 && count == read.lines().count(),
        "not every object came back"
    );
    for difference in differences.iter().take(SHOWN) {
        eprintln!("{}", difference.chars().take(2000).collect::<String>());
    }
    println!(
        "{count} objects, {} differences (seed {seed})",
        differences.len()
    );
    match differences.is_empty() {
        true => Ok(()),
        false => bail!("protobuf and JSON do not mean the same"),
    }
}

/// JSON without what says nothing: Go tells nil from empty in some places, where protobuf does not.
fn meaning(text: &str) -> Option<Value> {
    let mut value = serde_json::from_str(text).ok()?;
    strip(&mut value);
    Some(value)
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(strip);
            fields.retain(|_, v| match v {
                Value::Null => false,
                Value::Object(fields) => !fields.is_empty(),
                Value::Array(items) => !items.is_empty(),
                _ => true,
            });
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

/// What a program says to `input`.
fn through(command: &mut Command, input: &str) -> Result<String> {
    let mut file = tempfile::tempfile()?;
    std::io::Write::write_all(&mut file, input.as_bytes())?;
    std::io::Seek::rewind(&mut file)?;
    let out = command
        .stdin(file)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(
        out.status.success(),
        "{:?}: {}",
        command.get_program(),
        out.status
    );
    Ok(String::from_utf8(out.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_and_absent_mean_the_same() {
        assert_eq!(
            meaning(r#"{"a":null,"b":{"c":[]},"d":0}"#),
            meaning(r#"{"d":0}"#)
        );
        assert_ne!(meaning(r#"{"d":0}"#), meaning("{}"));
        assert_eq!(meaning("x"), None);
    }
}
