//! Time, tasks and the API are handed to who needs them; only their homes take them from the machine.
//!
//! Owns: which calls have a home, and how many of each stand elsewhere today, package by package. A count may only fall, and
//! the table falls with it. Clippy's `disallowed-methods` has no such table: it would want an attribute at each place.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{ImplItem, Item, TraitItem, UseTree};

use super::sources::{self, Module, Target};

/// What is called, as the table's columns.
const CALLS: [&str; 6] = [
    "Timestamp::now",
    "Instant::now",
    "SystemTime::now",
    "tokio::spawn",
    "kube::Client",
    "unwrap",
];

/// Files and folders where a call is at home.
const HOMES: &[(&str, &[&str])] = &[
    (
        "controllers/component-base/src/clock.rs",
        &["Timestamp::now", "Instant::now", "SystemTime::now"],
    ),
    ("controllers/component-base/src/tasks.rs", &["tokio::spawn"]),
    ("controllers/component-base/src/client", &["kube::Client"]),
];

/// Packages that may call all but `unwrap`: the judge and its driver measure real machines, and know none of our crates.
const OUTSIDE: &[&str] = &["e2e", "csi-hostpath"];

/// How many calls are away from home today, tests aside, by the columns of [`CALLS`]. A package that is not here has none.
#[rustfmt::skip]
const AWAY: &[(&str, [usize; 6])] = &[
    // Timestamp, Instant, SystemTime, spawn, Client, unwrap
    ("component-base", [1, 11, 0, 0, 6, 0]),
    ("controller-runtime", [0, 0, 0, 0, 2, 0]),
    ("cri", [5, 5, 0, 8, 0, 0]),
    ("csi", [0, 2, 0, 1, 0, 0]),
    ("gantry-announcer", [2, 0, 0, 0, 0, 0]),
    ("images", [0, 1, 1, 1, 0, 0]),
    ("kube-controller-manager", [0, 0, 0, 0, 6, 0]),
    ("kube-proxy", [0, 0, 0, 0, 1, 0]),
    ("kube-scheduler", [0, 0, 0, 0, 10, 0]),
    ("kubelet", [27, 25, 0, 4, 32, 0]),
    ("network", [0, 0, 0, 1, 0, 0]),
    ("nftables", [0, 2, 0, 0, 0, 0]),
    ("pods-api", [0, 2, 0, 0, 0, 0]),
    ("runtime", [6, 4, 0, 8, 0, 0]),
    ("shim", [0, 0, 1, 0, 0, 0]),
    ("streaming", [0, 5, 0, 7, 0, 0]),
    ("virtual-kubelet", [5, 11, 0, 0, 13, 0]),
    ("volumes", [4, 5, 0, 4, 0, 0]),
];

/// What the table does not allow, or allows no longer.
pub fn problems(targets: &[Target]) -> BTreeSet<String> {
    let mut places: BTreeMap<(&str, usize), BTreeSet<String>> = BTreeMap::new();
    let mut files = BTreeSet::new();
    for target in targets {
        for module in &target.modules {
            // Programs and the library of a package may share a file.
            if is_for_tests(module) || !files.insert(&module.file) {
                continue;
            }
            for (call, line, column) in found(&module.syntax) {
                if !is_home(&target.package, &module.file, CALLS[call]) {
                    let place = format!("{}:{line}:{column}", module.file);
                    let key = (target.package.as_str(), call);
                    places.entry(key).or_default().insert(place);
                }
            }
        }
    }
    let packages = targets.iter().map(|target| target.package.as_str());
    let packages: BTreeSet<&str> = packages.chain(AWAY.iter().map(|row| row.0)).collect();
    let none = BTreeSet::new();
    let mut problems = BTreeSet::new();
    for package in packages {
        let row = AWAY.iter().find(|row| row.0 == package);
        for (call, name) in CALLS.iter().enumerate() {
            let allowed = row.map_or(0, |row| row.1[call]);
            let found = places.get(&(package, call)).unwrap_or(&none);
            problems.extend(compare(package, name, allowed, found));
        }
    }
    problems
}

fn compare(package: &str, call: &str, allowed: usize, found: &BTreeSet<String>) -> Option<String> {
    let count = found.len();
    if count > allowed {
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        return Some(format!(
            "{package}: {count} of {call} away from home, {allowed} at most: {}",
            found.join(" ")
        ));
    }
    (count < allowed).then(|| {
        format!("{package}: {call} is {count} times away from home by now: the table in {} says {allowed}", file!())
    })
}

/// Builders and stand-ins that several crates' tests share are compiled with the rest, in modules of this name.
fn is_for_tests(module: &Module) -> bool {
    module.path.iter().any(|name| name == "testing")
}

fn is_home(package: &str, file: &str, call: &str) -> bool {
    let outside = OUTSIDE.contains(&package) && call != "unwrap";
    outside
        || HOMES
            .iter()
            .any(|(place, calls)| file.starts_with(place) && calls.contains(&call))
}

/// Every call of a file, tests aside: its column of the table, line and column.
fn found(file: &syn::File) -> Vec<(usize, usize, usize)> {
    let mut calls = Calls::default();
    calls.visit_file(file);
    calls.0
}

#[derive(Default)]
struct Calls(Vec<(usize, usize, usize)>);

impl Calls {
    fn add(&mut self, call: usize, at: proc_macro2::Span) {
        let at = at.start();
        self.0.push((call, at.line, at.column + 1));
    }

    fn path(&mut self, names: &[String], at: proc_macro2::Span) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let call = match names[..] {
            [.., "Timestamp" | "Zoned", "now"] => 0,
            [.., "Instant", "now"] => 1,
            [.., "SystemTime", "now"] => 2,
            ["tokio", "spawn"] | [.., "task", "spawn"] => 3,
            ["kube", "Client", ..] | ["kube", "client", "Client", ..] => 4,
            _ => return,
        };
        self.add(call, at);
    }

    fn uses(&mut self, tree: &UseTree, names: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                names.push(sources::plain(&path.ident));
                self.uses(&path.tree, names);
                names.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.uses(tree, names);
                }
            }
            UseTree::Name(syn::UseName { ident, .. })
            | UseTree::Rename(syn::UseRename { ident, .. }) => {
                names.push(sources::plain(ident));
                self.path(names, ident.span());
                names.pop();
            }
            UseTree::Glob(_) => {}
        }
    }

    /// What macros are given is no syntax tree.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: usize, what: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == what);
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let mut names = vec![sources::plain(first)];
                    let begin = at;
                    while is(at + 1, ':')
                        && is(at + 2, ':')
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        names.push(sources::plain(next));
                        at += 3;
                    }
                    let called = matches!(tokens.get(at + 1), Some(TokenTree::Group(g)) if g.stream().is_empty());
                    if first == "unwrap" && begin > 0 && is(begin - 1, '.') && called {
                        self.add(5, first.span());
                    }
                    self.path(&names, first.span());
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl<'a> Visit<'a> for Calls {
    fn visit_item(&mut self, item: &'a Item) {
        if !sources::is_test(sources::attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        if !sources::is_test(sources::attributes_within(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'a TraitItem) {
        if !sources::is_test(sources::attributes_of_trait(item)) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.uses(&item.tree, &mut vec![]);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|segment| sources::plain(&segment.ident))
            .collect();
        if let Some(first) = path.segments.first() {
            self.path(&names, first.ident.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        if call.method == "unwrap" && call.args.is_empty() {
            self.add(5, call.method.span());
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.tokens(call.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[(&str, usize)]) {
        let file = syn::parse_file(text).unwrap();
        let calls = found(&file);
        let calls: Vec<(&str, usize)> = calls
            .iter()
            .map(|(call, line, _)| (CALLS[*call], *line))
            .collect();
        assert_eq!(calls, expect, "{text}");
    }

    #[test]
    fn calls_are_found_in_code_and_in_macros() {
        for (text, expect) in [
            (
                "fn a() { let t = jiff::Timestamp::now(); }",
                vec![("Timestamp::now", 1)],
            ),
            ("fn a() {\n b(Instant::now);\n}", vec![("Instant::now", 2)]),
            (
                "fn a() { tokio::time::Instant::now() }",
                vec![("Instant::now", 1)],
            ),
            (
                "fn a() { assert!(t < SystemTime::now()); }",
                vec![("SystemTime::now", 1)],
            ),
            (
                "fn a() { tokio::spawn(async { tokio::task::spawn(b) }); }",
                vec![("tokio::spawn", 1), ("tokio::spawn", 1)],
            ),
            ("use tokio::{spawn, sync::mpsc};", vec![("tokio::spawn", 1)]),
            (
                "fn a() { tasks.spawn(b); tokio::task::spawn_blocking(b); }",
                vec![],
            ),
            ("use kube::{Api, Client};", vec![("kube::Client", 1)]),
            (
                "struct A { client: kube::Client }",
                vec![("kube::Client", 1)],
            ),
            ("struct A { client: reqwest::Client }", vec![]),
            (
                "fn a() { b.unwrap(); b.unwrap_or(1); format!(\"{}\", b.unwrap()) }",
                vec![("unwrap", 1), ("unwrap", 1)],
            ),
            (
                "// Instant::now()\nconst A: &str = \"Instant::now()\";",
                vec![],
            ),
            (
                "#[cfg(test)]\nmod tests { fn a() { Instant::now() } }",
                vec![],
            ),
            ("impl A { #[cfg(test)] fn a() { Instant::now() } }", vec![]),
        ] {
            check(text, &expect);
        }
    }

    #[test]
    fn more_than_the_table_allows_is_an_error_and_less_too() {
        let places = |n: usize| (0..n).map(|n| format!("a.rs:{n}:1")).collect();
        assert_eq!(compare("p", "unwrap", 2, &places(2)), None);
        let more = compare("p", "unwrap", 1, &places(2)).unwrap();
        assert_eq!(
            more,
            "p: 2 of unwrap away from home, 1 at most: a.rs:0:1 a.rs:1:1"
        );
        let less = compare("p", "unwrap", 3, &places(2)).unwrap();
        assert!(less.contains("unwrap is 2 times away from home"), "{less}");
    }

    #[test]
    fn what_is_at_home_does_not_count() {
        let text = "fn a() { Instant::now(); tokio::spawn(b); }";
        let problems_of = |package: &str, file: &str| {
            let target = Target {
                package: package.to_owned(),
                modules: vec![Module::parse(&[], file, text).unwrap()],
            };
            let mut found = problems(&[target]);
            found.retain(|problem| problem.contains("at most") && problem.starts_with("new-"));
            found.len()
        };
        assert_eq!(problems_of("new-crate", "new/src/lib.rs"), 2);
        let clock = "controllers/component-base/src/clock.rs";
        assert_eq!(problems_of("new-crate", clock), 1);
        assert!(is_home("e2e", "e2e/src/vm.rs", "Instant::now"));
        assert!(!is_home("e2e", "e2e/src/vm.rs", "unwrap"));
    }
}
