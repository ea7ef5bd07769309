//! The sources of every program and library, as the compiler sees them: module by module, from the crates' roots, tests aside.
//!
//! Owns: which file is which module, and what counts as a test. Never judges; the rules beside it do.

use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;
use syn::spanned::Spanned as _;
use syn::{AttrStyle, Attribute, ImplItem, Item, Meta, TraitItem};

/// A library or a program.
pub struct Target {
    pub package: String,
    /// The root first.
    pub modules: Vec<Module>,
}

/// A module with a file of its own; those written in braces are within it.
pub struct Module {
    /// From the crate's root, which is empty.
    pub path: Vec<String>,
    /// From the workspace's root.
    pub file: String,
    pub lines: usize,
    pub syntax: syn::File,
}

impl Module {
    /// # Errors
    /// What is no Rust.
    pub fn parse(path: &[&str], file: &str, text: &str) -> Result<Self> {
        let syntax = syn::parse_file(text).map_err(|error| {
            let line = error.span().start().line;
            anyhow::anyhow!("{file}:{line}: {error}")
        })?;
        Ok(Self {
            path: path.iter().map(|name| (*name).to_owned()).collect(),
            file: file.to_owned(),
            lines: text.lines().count(),
            syntax,
        })
    }
}

/// Every library and program of the workspace, less tests, examples and build scripts.
///
/// # Errors
/// A file that cannot be read or is no Rust.
pub fn targets(metadata: &Value, workspace: &Path) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    let packages = metadata["packages"].as_array();
    for package in packages.context("cargo metadata has no packages")? {
        let name = package["name"].as_str().unwrap_or_default();
        for target in package["targets"].as_array().into_iter().flatten() {
            let kinds = target["kind"].as_array();
            let wanted = |kind: &Value| kind == "lib" || kind == "bin" || kind == "proc-macro";
            if !kinds.is_some_and(|kinds| kinds.iter().any(wanted)) {
                continue;
            }
            let root = target["src_path"].as_str().unwrap_or_default();
            let mut modules = Vec::new();
            let folder = Path::new(root).parent().unwrap_or(Path::new("/"));
            read(
                workspace,
                Path::new(root),
                folder,
                &mut vec![],
                &mut modules,
            )?;
            found.push(Target {
                package: name.to_owned(),
                modules,
            });
        }
    }
    Ok(found)
}

/// Reads a module's file and those of its children, which are in `folder`.
fn read(
    workspace: &Path,
    file: &Path,
    folder: &Path,
    path: &mut Vec<String>,
    modules: &mut Vec<Module>,
) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let shown = file.strip_prefix(workspace).unwrap_or(file);
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    let module = Module::parse(&names, &shown.display().to_string(), &text)?;
    let mut children = Vec::new();
    declared(&module.syntax.items, &[], &mut children);
    modules.push(module);
    for child in children {
        let mut within = folder.to_path_buf();
        within.extend(&child[..child.len() - 1]);
        let name = &child[child.len() - 1];
        let file = [
            within.join(format!("{name}.rs")),
            within.join(name).join("mod.rs"),
        ];
        let Some(file) = file.iter().find(|file| file.exists()) else {
            bail!("{}: there is no file of the module {name}", shown.display());
        };
        let depth = path.len();
        path.extend(child.iter().cloned());
        read(workspace, file, &within.join(name), path, modules)?;
        path.truncate(depth);
    }
    Ok(())
}

/// Modules declared without a body, tests aside: each with the modules in braces that it stands in.
fn declared(items: &[Item], within: &[String], found: &mut Vec<Vec<String>>) {
    for item in items {
        let Item::Mod(module) = item else { continue };
        if is_test(&module.attrs) {
            continue;
        }
        let mut path = within.to_vec();
        path.push(plain(&module.ident));
        match &module.content {
            Some((_, items)) => declared(items, &path, found),
            None => found.push(path),
        }
    }
}

/// A name without the `r#` of keywords.
pub fn plain(ident: &syn::Ident) -> String {
    let name = ident.to_string();
    name.strip_prefix("r#").unwrap_or(&name).to_owned()
}

/// Whether an item is there for tests (or for fuzzing) alone.
pub fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        list.path.is_ident("cfg") && only_tests(list.tokens.clone())
    })
}

/// Whether a condition holds in tests (or fuzzing) alone: `test`, `any(test, fuzzing)`, `all(test, …)`.
fn only_tests(condition: TokenStream) -> bool {
    let tokens: Vec<TokenTree> = condition.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(name)] => name == "test" || name == "fuzzing",
        [TokenTree::Ident(name), TokenTree::Group(group)] => {
            let within: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut parts = within
                .split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ','))
                .filter(|part| !part.is_empty())
                .map(|part| only_tests(part.iter().cloned().collect()));
            (name == "any" && parts.all(|part| part)) || (name == "all" && parts.any(|part| part))
        }
        _ => false,
    }
}

/// Whether a file says at its head what it is.
pub fn has_head(module: &Module) -> bool {
    module.syntax.attrs.iter().any(|attribute| {
        matches!(attribute.style, AttrStyle::Inner(_)) && attribute.path().is_ident("doc")
    })
}

/// Lines of a file that are there for tests alone.
pub fn test_lines(items: &[Item]) -> usize {
    let mut lines = 0;
    for item in items {
        if is_test(attributes(item)) {
            let span = item.span();
            lines += span.end().line + 1 - span.start().line;
        } else if let Item::Mod(module) = item
            && let Some((_, items)) = &module.content
        {
            lines += test_lines(items);
        }
    }
    lines
}

pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

pub fn attributes_within(item: &ImplItem) -> &[Attribute] {
    match item {
        ImplItem::Const(item) => &item.attrs,
        ImplItem::Fn(item) => &item.attrs,
        ImplItem::Type(item) => &item.attrs,
        ImplItem::Macro(item) => &item.attrs,
        _ => &[],
    }
}

pub fn attributes_of_trait(item: &TraitItem) -> &[Attribute] {
    match item {
        TraitItem::Const(item) => &item.attrs,
        TraitItem::Fn(item) => &item.attrs,
        TraitItem::Type(item) => &item.attrs,
        TraitItem::Macro(item) => &item.attrs,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_for_tests_alone_is_told() {
        for (condition, expect) in [
            ("test", true),
            ("any(test, fuzzing)", true),
            ("all(test, target_os = \"linux\")", true),
            ("any(test, feature = \"testing\")", false),
            ("not(test)", false),
            ("target_os = \"linux\"", false),
        ] {
            let text = format!("#[cfg({condition})] fn a() {{}}");
            let file = syn::parse_file(&text).unwrap();
            assert_eq!(is_test(attributes(&file.items[0])), expect, "{condition}");
        }
    }

    #[test]
    fn lines_of_tests_are_counted_with_their_attributes_and_docs() {
        let text = "fn a() {}\n/// Of tests.\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nmod c {\n #[cfg(test)]\n fn d() {}\n}\n";
        assert_eq!(test_lines(&syn::parse_file(text).unwrap().items), 5 + 2);
    }

    #[test]
    fn modules_are_found_by_their_declarations() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write(
            "src/lib.rs",
            "//! A.\nmod a;\n#[cfg(test)]\nmod tests;\nmod b { mod c; }",
        );
        write("src/a.rs", "mod r#type;");
        write("src/a/type.rs", "//! T.");
        write("src/b/c.rs", "");
        let root = folder.path().join("src/lib.rs");
        let metadata = serde_json::json!({"packages": [{"name": "p", "targets": [
            {"kind": ["lib"], "src_path": root},
            {"kind": ["test"], "src_path": "/nowhere.rs"},
        ]}]});
        let targets = targets(&metadata, folder.path()).unwrap();
        let found: Vec<(String, &str, bool)> = targets[0]
            .modules
            .iter()
            .map(|m| (m.path.join("::"), m.file.as_str(), has_head(m)))
            .collect();
        assert_eq!(
            found,
            [
                (String::new(), "src/lib.rs", true),
                ("a".to_owned(), "src/a.rs", false),
                ("a::type".to_owned(), "src/a/type.rs", true),
                ("b::c".to_owned(), "src/b/c.rs", false),
            ]
        );
    }
}
