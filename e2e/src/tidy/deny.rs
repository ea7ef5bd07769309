//! What others wrote: licences and duplicate versions in the tree of dependencies, by `.cargo/deny.toml`.
//!
//! Owns: the reading of that file as far as `cargo metadata` can be held to it: licences, exceptions, and versions of one crate.
//! Where cargo-deny is installed it is run, too: it knows of advisories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::step::output;

const FILE: &str = ".cargo/deny.toml";

/// The part of the file that is read here.
#[derive(Debug, Deserialize)]
struct Deny {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Debug, Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    #[serde(default)]
    exceptions: Vec<Exception>,
}

#[derive(Debug, Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    #[serde(default)]
    skip: Vec<Skip>,
    #[serde(default)]
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
}

#[derive(Debug, Deserialize)]
struct Skip {
    /// `name@version`, whose end may be missing.
    #[serde(rename = "crate")]
    of: String,
    reason: String,
}

/// A crate of a registry.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    /// As SPDX has them.
    license: String,
}

/// What the file does not allow, or allows no longer.
///
/// # Errors
/// The file cannot be read, or `cargo metadata` fails.
pub fn problems(workspace: &Path) -> Result<Vec<String>> {
    let path = workspace.join(FILE);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let deny: Deny = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let packages = packages(workspace, &deny.graph.targets)?;
    let mut problems = licences(&deny.licenses, &packages);
    problems.extend(duplicates(&deny.bans.skip, &packages));
    let banned = |package: &&Package| {
        deny.bans
            .deny
            .iter()
            .any(|banned| banned.name == package.name)
    };
    let banned = packages.iter().filter(banned);
    problems.extend(banned.map(|package| format!("{} is banned by {FILE}", package.name)));
    let installed = Command::new("cargo-deny").arg("--version").output();
    if installed.is_ok_and(|out| out.status.success()) {
        let mut command = Command::new("cargo-deny");
        command
            .current_dir(workspace)
            .args(["check", "--hide-inclusion-graph"]);
        if let Err(error) = output(&mut command) {
            problems.push(format!("cargo-deny: {error:#}"));
        }
    }
    Ok(problems)
}

fn packages(workspace: &Path, targets: &[String]) -> Result<Vec<Package>> {
    let metadata = |more: &[&str]| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args(["metadata", "--format-version=1", "--locked"])
            .args(more);
        for target in targets {
            command.arg(format!("--filter-platform={target}"));
        }
        output(&mut command)
    };
    // What was never built here may have to be fetched first.
    let text = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    // Those that are for other platforms are listed, and no node of the graph.
    let nodes = metadata["resolve"]["nodes"].as_array();
    let nodes = nodes.context("cargo metadata resolves nothing")?;
    let used: BTreeSet<&str> = nodes
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    let all = metadata["packages"].as_array();
    let all = all.context("cargo metadata has no packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let foreign = all.iter().filter(|package| {
        package["source"].is_string() && package["id"].as_str().is_some_and(|id| used.contains(id))
    });
    Ok(foreign
        .map(|package| Package {
            name: text(&package["name"]),
            version: text(&package["version"]),
            license: match package["license"].as_str() {
                Some(license) => license.to_owned(),
                None => of_file(package),
            },
        })
        .collect())
}

/// Of a crate that brings the text alone.
fn of_file(package: &Value) -> String {
    const MIT: &str =
        "Permission is hereby granted, free of charge, to any person obtaining a copy";
    let (Some(manifest), Some(file)) = (
        package["manifest_path"].as_str(),
        package["license_file"].as_str(),
    ) else {
        return String::new();
    };
    let path = Path::new(manifest).with_file_name(file);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let text: Vec<&str> = text.split_whitespace().collect();
    match text.join(" ").contains(MIT) {
        true => "MIT".to_owned(),
        false => format!("what {file} says"),
    }
}

fn licences(rules: &Licenses, packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut needed = BTreeSet::new();
    let mut met = BTreeSet::new();
    for Package {
        name,
        version,
        license,
    } in packages
    {
        let exception = rules.exceptions.iter().find(|e| e.name == *name);
        let mut is_allowed = |one: &str| {
            if rules.allow.contains(one) {
                met.insert(one.to_owned());
                return true;
            }
            let excepted = exception.is_some_and(|e| e.allow.contains(one));
            if excepted {
                needed.insert(name.as_str());
            }
            excepted
        };
        if !satisfied(license, &mut is_allowed) {
            problems.push(format!(
                "{name} {version} is under {license:?}, which {FILE} does not allow"
            ));
        }
    }
    let unmet = rules.allow.difference(&met);
    problems
        .extend(unmet.map(|one| format!("{FILE}: no crate is under {one}: it goes from the list")));
    let unneeded = rules
        .exceptions
        .iter()
        .filter(|e| !needed.contains(e.name.as_str()));
    problems.extend(unneeded.map(|e| format!("{FILE}: {} needs no exception", e.name)));
    problems
}

/// Whether what is allowed satisfies an expression of SPDX. `AND` binds closer than `OR`; of old, a slash stands for that. All of
/// it is looked at, so that what is allowed is known to be met.
fn satisfied(expression: &str, is_allowed: &mut dyn FnMut(&str) -> bool) -> bool {
    let text = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let result = any_of(&words, &mut at, is_allowed);
    result && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize, is_allowed: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut result = all_of(words, at, is_allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all_of(words, at, is_allowed);
    }
    result
}

fn all_of(words: &[&str], at: &mut usize, is_allowed: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut result = one(words, at, is_allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at, is_allowed);
    }
    result
}

fn one(words: &[&str], at: &mut usize, is_allowed: &mut dyn FnMut(&str) -> bool) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word == "(" {
        let result = any_of(words, at, is_allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return result && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        // An exception of the licence's own gives more than the licence; cargo-deny wants it named.
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        let named = is_allowed(&format!("{word} WITH {exception}"));
        return is_allowed(word) || named;
    }
    is_allowed(word)
}

fn duplicates(skips: &[Skip], packages: &[Package]) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        let of = versions.entry(&package.name).or_default();
        of.insert(&package.version);
    }
    let mut problems = Vec::new();
    let mut needed = BTreeSet::new();
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let mut left = Vec::new();
        for version in versions {
            let skip = skips.iter().position(|skip| is_of(&skip.of, name, version));
            match skip {
                Some(skip) => _ = needed.insert(skip),
                None => left.push(*version),
            }
        }
        if left.len() > 1 {
            let left = left.join(", ");
            problems.push(format!(
                "{name} is there in versions {left}: one is to go, or {FILE} says why it stays"
            ));
        }
    }
    for (index, skip) in skips.iter().enumerate() {
        if !needed.contains(&index) {
            problems.push(format!(
                "{FILE}: {} is no duplicate any longer: its line goes",
                skip.of
            ));
        }
        if skip.reason.is_empty() {
            problems.push(format!("{FILE}: {} has no reason", skip.of));
        }
    }
    problems
}

/// Whether `name@0.38` means this version: as cargo reads a version, less what follows a zero.
fn is_of(skip: &str, name: &str, version: &str) -> bool {
    let Some((of, wanted)) = skip.split_once('@') else {
        return skip == name;
    };
    let rest = version.strip_prefix(wanted);
    of == name && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: license.to_owned(),
        }
    }

    #[test]
    fn expressions_are_read_as_spdx_writes_them() {
        for (expression, expect) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("", false),
            ("MIT OR GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("GPL-3.0/MIT", true),
            ("MIT/Apache-2.0", true),
            ("(MIT OR GPL-3.0) AND ISC", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("GPL-3.0 OR MIT AND Apache-2.0", true),
            ("GPL-3.0 AND MIT OR ISC", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0 WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT MIT", false),
        ] {
            let mut is_allowed = |one: &str| ["MIT", "Apache-2.0"].contains(&one);
            assert_eq!(
                satisfied(expression, &mut is_allowed),
                expect,
                "{expression:?}"
            );
        }
    }

    #[test]
    fn a_licence_that_is_not_allowed_is_told_and_one_that_nobody_has_too() {
        let rules = Licenses {
            allow: ["MIT", "ISC"].map(str::to_owned).into(),
            exceptions: ["a", "b"]
                .map(|name| Exception {
                    name: name.to_owned(),
                    allow: ["MPL-2.0".to_owned()].into(),
                })
                .into(),
        };
        let packages = [
            package("a", "1.0.0", "MPL-2.0"),
            package("b", "1.0.0", "MIT"),
            package("c", "1.0.0", "MPL-2.0"),
        ];
        let expect = [
            "c 1.0.0 is under \"MPL-2.0\", which .cargo/deny.toml does not allow",
            ".cargo/deny.toml: no crate is under ISC: it goes from the list",
            ".cargo/deny.toml: b needs no exception",
        ];
        assert_eq!(licences(&rules, &packages), expect);
    }

    #[test]
    fn duplicates_need_a_line_and_lines_a_duplicate() {
        let skip = |of: &str| Skip {
            of: of.to_owned(),
            reason: "because".to_owned(),
        };
        let packages = [
            package("a", "0.3.8", "MIT"),
            package("a", "0.38.1", "MIT"),
            package("b", "1.0.0", "MIT"),
            package("b", "2.0.0", "MIT"),
            package("c", "1.0.0", "MIT"),
        ];
        let found = duplicates(&[skip("a@0.38"), skip("c@1")], &packages);
        let expect = [
            "b is there in versions 1.0.0, 2.0.0: one is to go, or .cargo/deny.toml says why it stays",
            ".cargo/deny.toml: c@1 is no duplicate any longer: its line goes",
        ];
        assert_eq!(found, expect);
    }
}
