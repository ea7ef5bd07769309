//! Which file counts for a device, and what a container gets for several of them; pure. Upstream: `refresh` and `InjectDevices` of
//! pkg/cdi/cache.go.

use std::path::{Path, PathBuf};

use crate::edits::ContainerEdits;
use crate::spec::Spec;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub path: PathBuf,
    /// Of its folder: a device of a higher one counts.
    pub priority: usize,
    pub spec: Spec,
}

/// What a container gets, and for which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// As it was asked for.
    pub device: &'a str,
    /// Where it is written.
    pub path: &'a Path,
    pub edits: &'a ContainerEdits,
}

/// Why a container cannot have its devices. Another try may help: files come and go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unresolvable CDI devices {}{}", .devices.join(", "), reasons(.why))]
pub struct ResolveError {
    pub devices: Vec<String>,
    /// What is known of them.
    pub why: Vec<String>,
}

fn reasons(why: &[String]) -> String {
    match why {
        [] => String::new(),
        _ => format!(" ({})", why.join("; ")),
    }
}

/// In the order of `names`, none twice: what a file has for all its devices comes once, before the first of them.
///
/// # Errors
/// A device is in no file, or in two of one priority. Every such device is named.
pub fn resolve<'a>(
    specs: &'a [Loaded],
    names: &'a [String],
) -> Result<Vec<Part<'a>>, ResolveError> {
    let mut parts = Vec::new();
    let mut begun: Vec<&Path> = Vec::new();
    let mut failed = ResolveError {
        devices: Vec::new(),
        why: Vec::new(),
    };
    for (at, name) in names.iter().enumerate() {
        if names[..at].contains(name) {
            continue;
        }
        let (loaded, edits) = match find(specs, name) {
            Ok(found) => found,
            Err(why) => {
                failed.devices.push(name.clone());
                failed.why.extend(why);
                continue;
            }
        };
        let part = |edits| Part {
            device: name,
            path: &loaded.path,
            edits,
        };
        if !begun.contains(&loaded.path.as_path()) {
            begun.push(&loaded.path);
            parts.push(part(&loaded.spec.container_edits));
        }
        parts.push(part(edits));
    }
    match failed.devices.is_empty() {
        true => Ok(parts),
        false => Err(failed),
    }
}

/// What is written of the device; a reason if two say something.
///
/// DIFFERS: two files of a lower folder that disagree are of no consequence where a higher one has the device; upstream gives it to nobody.
fn find<'a>(
    specs: &'a [Loaded],
    name: &str,
) -> Result<(&'a Loaded, &'a ContainerEdits), Option<String>> {
    let (kind, device) = name.split_once('=').unwrap_or((name, ""));
    let of_device = |loaded: &'a Loaded| {
        let mut devices = loaded.spec.devices.iter();
        let found = devices.find(|one| loaded.spec.kind == kind && one.name == device);
        found.map(|device| (loaded, &device.container_edits))
    };
    let all: Vec<_> = specs.iter().filter_map(of_device).collect();
    let highest = all.iter().map(|(loaded, _)| loaded.priority).max();
    let mut first = all
        .into_iter()
        .filter(|(loaded, _)| Some(loaded.priority) == highest);
    match (first.next(), first.next()) {
        (Some(one), None) => Ok(one),
        (Some((one, _)), Some((other, _))) => Err(Some(format!(
            "conflicting device {name:?} (specs {:?}, {:?})",
            one.path, other.path
        ))),
        (None, _) => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse;

    fn loaded(path: &str, priority: usize, devices: &[(&str, &str)]) -> Loaded {
        let devices: Vec<String> = devices
            .iter()
            .map(|(name, env)| {
                format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["{env}=1"]}}}}"#)
            })
            .collect();
        let text = format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "v.com/gpu", "containerEdits": {{"env": ["ALL_{priority}=1"]}},
                "devices": [{}]}}"#,
            devices.join(",")
        );
        Loaded {
            path: path.into(),
            priority,
            spec: parse(&text).unwrap(),
        }
    }

    fn check(specs: &[Loaded], names: &[&str], expect: &str) {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let got = match resolve(specs, &names) {
            Ok(parts) => {
                let envs = parts.iter().flat_map(|part| &part.edits.env);
                envs.cloned().collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect, "{names:?}");
    }

    #[test]
    fn a_device_brings_what_its_file_has_for_all() {
        let specs = [loaded("/a.json", 0, &[("0", "ZERO"), ("1", "ONE")])];
        check(&specs, &["v.com/gpu=0"], "ALL_0=1 ZERO=1");
        check(
            &specs,
            &["v.com/gpu=1", "v.com/gpu=0", "v.com/gpu=1"],
            "ALL_0=1 ONE=1 ZERO=1",
        );
        check(&specs, &[], "");
        check(
            &specs,
            &["v.com/gpu=2", "v.com/gpu=0", "w.com/gpu=0", "x"],
            "unresolvable CDI devices v.com/gpu=2, w.com/gpu=0, x",
        );
    }

    #[test]
    fn the_higher_folder_counts_and_equals_count_for_nothing() {
        let low = || loaded("/etc/cdi/a.json", 0, &[("0", "LOW"), ("1", "LOW_ONE")]);
        let high = loaded("/run/cdi/a.json", 1, &[("0", "HIGH")]);
        check(
            &[low(), high.clone()],
            &["v.com/gpu=0", "v.com/gpu=1"],
            "ALL_1=1 HIGH=1 ALL_0=1 LOW_ONE=1",
        );
        let twin = loaded("/etc/cdi/b.json", 0, &[("0", "TWIN")]);
        check(
            &[low(), twin.clone()],
            &["v.com/gpu=0"],
            "unresolvable CDI devices v.com/gpu=0 (conflicting device \"v.com/gpu=0\" (specs \"/etc/cdi/a.json\", \"/etc/cdi/b.json\"))",
        );
        // The conflict is of that device alone, and below a higher folder there is none.
        check(
            &[low(), twin.clone()],
            &["v.com/gpu=1"],
            "ALL_0=1 LOW_ONE=1",
        );
        check(&[low(), twin, high], &["v.com/gpu=0"], "ALL_1=1 HIGH=1");
    }
}
