//! Between the modules at the top of a crate arrows go one way: a circle of them is one room with many doors.
//!
//! An arrow is what a module's files name of another, by `crate::…` or `super::…`, in paths, in `use` and in macros; a name that the
//! crate's root re-exports is its module's. What the root says itself is no arrow, and tests are aside.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{ImplItem, Item, UseTree};

use super::sources::{self, Module, Target};

/// An arrow that closes a circle today: crate, from, to, and why it is not gone yet. No row is added; a row without which there
/// would be no circle either is an error.
type Row = (&'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const CLOSING: &[Row] = &[
    ("kubelet", "cm", "eviction", "what is allocatable depends on hard thresholds"),
    ("kubelet", "configuration", "eviction", "thresholds are validated where they are parsed"),
    ("kubelet", "configuration", "image_manager", "patterns of images are validated where they are used"),
    ("kubelet", "eviction", "kubelet", "the manager takes the whole kubelet"),
    ("shim", "launch", "process", "both sides of the fork share what is prepared"),
];

type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// Circles that the table's arrows do not close, and rows of it that close none.
pub fn problems(targets: &[Target]) -> BTreeSet<String> {
    let mut packages: BTreeMap<&str, Vec<Arrows>> = BTreeMap::new();
    for (package, ..) in CLOSING {
        packages.entry(package).or_default();
    }
    for target in targets {
        let of_package = packages.entry(&target.package).or_default();
        of_package.push(arrows(target));
    }
    let of = packages.iter();
    of.flat_map(|(package, targets)| problems_of(package, targets, CLOSING))
        .collect()
}

/// Of one package: its library and its programs.
fn problems_of(package: &str, targets: &[Arrows], closing: &[Row]) -> Vec<String> {
    let rows: Vec<&Row> = closing.iter().filter(|row| row.0 == package).collect();
    let without = |arrows: &Arrows, kept: Option<&Row>| {
        let mut arrows = arrows.clone();
        for (_, from, to, _) in rows.iter().filter(|row| Some(**row) != kept) {
            if let Some(found) = arrows.get_mut(*from) {
                found.remove(*to);
            }
        }
        arrows
    };
    let mut problems = Vec::new();
    for arrows in targets {
        let rest = without(arrows, None);
        let found = circles(&rest);
        problems.extend(found.iter().map(|circle| describe(package, circle, &rest)));
    }
    for row in &rows {
        let (_, from, to, _) = **row;
        let closes = |arrows: &Arrows| {
            let is_there = arrows.get(from).is_some_and(|found| found.contains_key(to));
            let rest = without(arrows, Some(row));
            is_there && reachable(to, &rest).iter().any(|found| *found == from)
        };
        if !targets.iter().any(closes) {
            problems.push(format!(
                "{package}: {from} -> {to} closes no circle any longer: its row in {} goes",
                file!()
            ));
        }
    }
    problems
}

fn describe(package: &str, circle: &BTreeSet<String>, arrows: &Arrows) -> String {
    let names: Vec<&str> = circle.iter().map(String::as_str).collect();
    let mut text = format!(
        "{package}: {} modules are a circle: {}",
        names.len(),
        names.join(", ")
    );
    for from in circle {
        for (to, place) in arrows.get(from).into_iter().flatten() {
            if circle.contains(to) {
                text += &format!("\n    {from} -> {to} ({place})");
            }
        }
    }
    text
}

/// From, to, and one place that says so.
fn arrows(target: &Target) -> Arrows {
    let names = |path: &[String]| (path.len() == 1).then(|| path[0].clone());
    let Some((root, modules)) = target.modules.split_first() else {
        return Arrows::new();
    };
    let mut tops: BTreeSet<String> = modules.iter().filter_map(|m| names(&m.path)).collect();
    for item in &root.syntax.items {
        if let Item::Mod(module) = item
            && !sources::is_test(&module.attrs)
        {
            tops.insert(sources::plain(&module.ident));
        }
    }
    let exports = exports(root, &tops);
    let mut found = Arrows::new();
    for module in &target.modules {
        let mut reader = Reader {
            tops: &tops,
            exports: &exports,
            at: module.path.clone(),
            file: &module.file,
            found: &mut found,
        };
        reader.visit_file(&module.syntax);
    }
    found
}

/// Names at the crate's root that are a module's.
fn exports(root: &Module, tops: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for item in &root.syntax.items {
        if let Item::Use(item) = item {
            leaves(&item.tree, &mut vec![], &mut |path, name, _| {
                let path: Vec<&String> = path
                    .iter()
                    .skip_while(|name| *name == "self" || *name == "crate")
                    .collect();
                if let Some(top) = path.first().filter(|top| tops.contains(**top)) {
                    found.insert(name.to_owned(), (*top).clone());
                }
            });
        }
    }
    found
}

/// Calls `each` with the path of every name in a `use`, the name it is known by, and where.
fn leaves(
    tree: &UseTree,
    path: &mut Vec<String>,
    each: &mut impl FnMut(&[String], &str, proc_macro2::Span),
) {
    match tree {
        UseTree::Path(part) => {
            path.push(sources::plain(&part.ident));
            leaves(&part.tree, path, each);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, path, each);
            }
        }
        UseTree::Name(name) => {
            path.push(sources::plain(&name.ident));
            each(path, &sources::plain(&name.ident), name.ident.span());
            path.pop();
        }
        UseTree::Rename(name) => {
            path.push(sources::plain(&name.ident));
            each(path, &sources::plain(&name.rename), name.ident.span());
            path.pop();
        }
        UseTree::Glob(glob) => each(path, "*", glob.star_token.spans[0]),
    }
}

struct Reader<'a> {
    tops: &'a BTreeSet<String>,
    exports: &'a BTreeMap<String, String>,
    /// The module that is read.
    at: Vec<String>,
    file: &'a str,
    found: &'a mut Arrows,
}

impl Reader<'_> {
    fn path(&mut self, names: &[String], at: proc_macro2::Span) {
        let Some(from) = self.at.first().cloned() else {
            return;
        };
        let Some(to) = self.top_of(names).filter(|to| *to != from) else {
            return;
        };
        let place = format!("{}:{}", self.file, at.start().line);
        self.found
            .entry(from)
            .or_default()
            .entry(to)
            .or_insert(place);
    }

    /// The module at the top that a path leads to.
    fn top_of(&self, names: &[String]) -> Option<String> {
        let (base, rest): (&[String], &[String]) = match names.first()?.as_str() {
            "crate" => (&[], &names[1..]),
            "self" | "super" => {
                let rest: Vec<&String> = names.iter().skip_while(|n| *n == "self").collect();
                let ups = rest.iter().take_while(|name| **name == "super").count();
                let selfs = names.len() - rest.len();
                let depth = self.at.len().checked_sub(ups)?;
                (&self.at[..depth], &names[selfs + ups..])
            }
            _ => return None,
        };
        let first = base.iter().chain(rest).next()?;
        if self.tops.contains(first) {
            return Some(first.clone());
        }
        self.exports.get(first).cloned()
    }

    /// What macros are given is no syntax tree.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let colon =
            |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let mut names = vec![sources::plain(first)];
                    while colon(at + 1)
                        && colon(at + 2)
                        && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                    {
                        names.push(sources::plain(next));
                        at += 3;
                    }
                    self.path(&names, first.span());
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        if sources::is_test(sources::attributes(item)) {
            return;
        }
        match item {
            Item::Mod(module) => {
                self.at.push(sources::plain(&module.ident));
                visit::visit_item(self, item);
                self.at.pop();
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        if !sources::is_test(sources::attributes_within(item)) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        leaves(&item.tree, &mut vec![], &mut |path, _, at| {
            self.path(path, at)
        });
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

    fn visit_vis_restricted(&mut self, _: &'a syn::VisRestricted) {
        // `pub(in super::super)` needs nothing of the module it names.
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

/// Sets of modules that all reach one another.
fn circles(arrows: &Arrows) -> Vec<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = arrows
        .keys()
        .map(|from| (from, reachable(from, arrows)))
        .collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (from, reached) in &reach {
        if !reached.contains(from) || found.iter().any(|circle| circle.contains(*from)) {
            continue;
        }
        let back = |to: &&&String| {
            reach
                .get(**to)
                .is_some_and(|reached| reached.contains(*from))
        };
        found.push(
            reached
                .iter()
                .filter(back)
                .map(|to| (*to).clone())
                .collect(),
        );
    }
    found
}

fn reachable<'a>(from: &str, arrows: &'a Arrows) -> BTreeSet<&'a String> {
    let mut found = BTreeSet::new();
    let mut ahead: Vec<&String> = arrows
        .get(from)
        .into_iter()
        .flat_map(|to| to.keys())
        .collect();
    while let Some(next) = ahead.pop() {
        if found.insert(next) {
            ahead.extend(arrows.get(next).into_iter().flat_map(|to| to.keys()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Circles of a crate of these modules, by path and source.
    fn check(modules: &[(&str, &str)], expect: &[&str]) {
        let modules = modules.iter().map(|(path, text)| {
            let names: Vec<&str> = path.split("::").filter(|name| !name.is_empty()).collect();
            Module::parse(&names, &format!("{path}.rs"), text).unwrap()
        });
        let target = Target {
            package: "p".to_owned(),
            modules: modules.collect(),
        };
        let found: Vec<String> = circles(&arrows(&target))
            .into_iter()
            .map(|circle| circle.into_iter().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn circles_are_found() {
        let root = ("", "mod a; mod b; mod c; pub use b::{B, D as E};");
        let check = |modules: &[(&str, &str)], expect: &[&str]| {
            check(&[&[root], modules].concat(), expect);
        };
        check(&[("a", "use crate::b::B;"), ("b", ""), ("c", "")], &[]);
        check(
            &[("a", "use crate::b::B;"), ("b", "use crate::a;")],
            &["a b"],
        );
        check(
            &[
                ("a", "use crate::{b, x};"),
                ("b", "fn f() -> crate::c::C {}"),
                ("c", "use super::a::A;"),
            ],
            &["a b c"],
        );
        // By a name of the root's.
        check(&[("a", "use crate::B;"), ("b", "use crate::a;")], &["a b"]);
        check(&[("a", "use crate::E;"), ("b", "use crate::a;")], &["a b"]);
        check(&[("a", "use crate::D;"), ("b", "use crate::a;")], &[]);
        // From below, in braces, in a macro.
        check(
            &[
                ("a", ""),
                ("a::x", "use super::super::b;"),
                ("b", "mod y { use super::super::a; }"),
            ],
            &["a b"],
        );
        check(
            &[("a", "fn f() { g!(crate::b::B) }"), ("b", "use crate::a;")],
            &["a b"],
        );
    }

    #[test]
    fn a_row_holds_as_long_as_it_closes_a_circle() {
        let check = |arrows: &[(&str, &str)], closing: &[Row], expect: &[&str]| {
            let mut found = Arrows::new();
            for (from, to) in arrows {
                let to = ((*to).to_owned(), "f.rs:1".to_owned());
                found.entry((*from).to_owned()).or_default().extend([to]);
            }
            let found = problems_of("p", &[found, Arrows::new()], closing);
            assert_eq!(found.len(), expect.len(), "{found:?}");
            for (found, expect) in found.iter().zip(expect) {
                assert!(found.contains(expect), "{found}");
            }
        };
        let row = ("p", "b", "a", "for now");
        check(
            &[("a", "b"), ("b", "a")],
            &[],
            &["2 modules are a circle: a, b"],
        );
        check(&[("a", "b"), ("b", "a")], &[row], &[]);
        // A module more in the circle needs no other row; another way back does.
        check(
            &[("a", "b"), ("a", "c"), ("c", "b"), ("b", "a")],
            &[row],
            &[],
        );
        check(
            &[("a", "b"), ("b", "a"), ("b", "c"), ("c", "a")],
            &[row],
            &["3 modules are a circle"],
        );
        check(
            &[("a", "b")],
            &[row],
            &["b -> a closes no circle any longer"],
        );
        check(
            &[("b", "a")],
            &[row],
            &["b -> a closes no circle any longer"],
        );
        let other = ("p", "a", "b", "for now");
        let twice = "closes no circle any longer";
        check(&[("a", "b"), ("b", "a")], &[row, other], &[twice, twice]);
    }

    #[test]
    fn what_is_no_arrow_makes_no_circle() {
        let root = ("", "mod a; mod b; use a::A; fn main() { b::f(a::g()) }");
        for (a, b) in [
            // Children and the module itself.
            (
                "use self::x::X; use crate::a::x; mod x { use super::*; }",
                "",
            ),
            (
                "use crate::b::B;",
                "#[cfg(test)] mod tests { use crate::a; }",
            ),
            ("use crate::b::B;", "pub(in crate::a) fn f() {}"),
            (
                "use crate::b::B;",
                "// crate::a\nconst A: &str = \"crate::a\";",
            ),
            ("use crate::b::B;", "use other::a;"),
        ] {
            check(&[root, ("a", a), ("b", b)], &[]);
        }
    }
}
