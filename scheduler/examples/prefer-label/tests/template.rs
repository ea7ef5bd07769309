//! The template beside the examples makes this very example: it compiles and works because this does.

use std::fs;
use std::path::{Path, PathBuf};

use kube_scheduler::config::{API_VERSION, KIND, load, set_defaults, validate};

/// What `cargo generate` would be told, and what it knows itself.
const VALUES: [(&str, &str); 4] = [
    ("project-name", "example-prefer-label"),
    ("crate_name", "example_prefer_label"),
    ("plugin_name", "PreferLabel"),
    ("gantry", "https://git.example.com/gantry"),
];

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of the template with its placeholders replaced.
fn expanded(path: &str) -> String {
    let mut text = read(&here("../template").join(path));
    for (name, value) in VALUES {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    for left in ["{{", "{%"] {
        assert!(
            !text.contains(left),
            "{path}: a placeholder is left: {text}"
        );
    }
    text
}

#[test]
fn the_template_makes_this_example() {
    for path in ["src/lib.rs", "src/main.rs", "tests/decides.rs"] {
        assert_eq!(expanded(path), read(&here(path)), "{path}");
    }
}

#[test]
fn the_templates_manifest_has_what_this_one_has() {
    let made: toml::Table = expanded("Cargo.toml.liquid").parse().expect("TOML");
    let own: toml::Table = read(&here("Cargo.toml")).parse().expect("TOML");
    let root: toml::Table = read(&here("../../../Cargo.toml")).parse().expect("TOML");
    let package = |field: &str| &root["workspace"]["package"][field];
    assert_eq!(made["package"]["name"], own["package"]["name"]);
    for field in ["edition", "rust-version"] {
        assert_eq!(made["package"][field], *package(field), "{field}");
    }
    let names = |manifest: &toml::Table, section: &str| -> Vec<String> {
        let all = manifest[section].as_table().expect("a table");
        // Of this workspace alone: one set of features, and this file's own TOML.
        let own = |name: &&String| !["workspace-hack", "toml"].contains(&name.as_str());
        all.keys().filter(own).cloned().collect()
    };
    for section in ["dependencies", "dev-dependencies"] {
        assert_eq!(names(&made, section), names(&own, section), "{section}");
    }
    for ours in ["framework", "kube-scheduler"] {
        let source = made["dependencies"][ours]["git"].as_str();
        assert_eq!(source, Some("https://git.example.com/gantry"), "{ours}");
    }
}

#[test]
fn the_templates_configuration_is_one() {
    let text = expanded("scheduler.yaml");
    assert!(text.contains(API_VERSION) && text.contains(KIND));
    let file = std::env::temp_dir().join(format!("template-{}.yaml", std::process::id()));
    fs::write(&file, text).expect("written");
    let loaded = load(&file);
    fs::remove_file(&file).expect("removed");
    let mut config = loaded.expect("strict");
    set_defaults(&mut config);
    assert!(validate(&config).is_empty());
    let enabled = config.profiles[0].plugins.as_ref().expect("given");
    assert_eq!(enabled.multi_point.enabled[0].name, "PreferLabel");
}

#[test]
fn every_placeholder_is_asked_for() {
    let asked: toml::Table = read(&here("../template/cargo-generate.toml"))
        .parse()
        .expect("TOML");
    let placeholders = asked["placeholders"].as_table().expect("a table");
    let mut names: Vec<&str> = placeholders.keys().map(String::as_str).collect();
    // cargo-generate knows these two by itself.
    names.extend(["project-name", "crate_name"]);
    names.sort_unstable();
    let mut expect = VALUES.map(|(name, _)| name);
    expect.sort_unstable();
    assert_eq!(names, expect);
    for path in ["Cargo.toml.liquid", "README.md", "scheduler.yaml"] {
        expanded(path);
    }
}
