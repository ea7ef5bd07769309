//! A file is a room, and a function fits a screen: 700 lines and 100 lines at most, tests aside. Every file says at its head what
//! it owns.

use std::collections::BTreeSet;

use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{ImplItem, Item, TraitItem};

use super::sources::{self, Module, Target};

/// Lines of a file, without those of tests in it.
const FILE: usize = 700;
/// Lines of a function, from its name to its last brace.
const FUNCTION: usize = 100;

/// Functions that are longer today: file, name. No row is added; a row whose function is shorter by now, or gone, is an error.
const LONGER: &[(&str, &str)] = &[("kubelet/src/configuration.rs", "default")];

/// What is too long, and what has no head.
pub fn problems(targets: &[Target]) -> BTreeSet<String> {
    let modules = || targets.iter().flat_map(|target| &target.modules);
    let mut found = BTreeSet::new();
    let mut longer = BTreeSet::new();
    for module in modules() {
        let file = &module.file;
        if !sources::has_head(module) {
            found.insert(format!("{file}: no //! says what it owns"));
        }
        let lines = file_lines(module);
        if lines > FILE {
            found.insert(format!("{file}: {lines} lines, {FILE} at most"));
        }
        for (name, line, lines) in long_functions(module) {
            match LONGER.iter().find(|row| **row == (file, &name)) {
                Some(row) => _ = longer.insert(*row),
                None => {
                    found.insert(format!(
                        "{file}:{line}: {name} has {lines} lines, {FUNCTION} at most"
                    ));
                }
            }
        }
    }
    for (file, name) in LONGER.iter().filter(|row| !longer.contains(*row)) {
        found.insert(format!(
            "{file}: {name} is short: its row in {} goes",
            file!()
        ));
    }
    found
}

fn file_lines(module: &Module) -> usize {
    module.lines - sources::test_lines(&module.syntax.items)
}

/// Name, line and length of every function that is too long.
fn long_functions(module: &Module) -> Vec<(String, usize, usize)> {
    let mut functions = Functions::default();
    functions.visit_file(&module.syntax);
    functions.0
}

#[derive(Default)]
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn measure(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.span().start().line;
        let lines = block.span().end().line + 1 - first;
        if lines > FUNCTION {
            self.0
                .push((sources::plain(&signature.ident), first, lines));
        }
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item(&mut self, item: &'a Item) {
        if sources::is_test(sources::attributes(item)) {
            return;
        }
        if let Item::Fn(function) = item {
            self.measure(&function.sig, &function.block);
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'a ImplItem) {
        if sources::is_test(sources::attributes_within(item)) {
            return;
        }
        if let ImplItem::Fn(function) = item {
            self.measure(&function.sig, &function.block);
        }
        visit::visit_impl_item(self, item);
    }

    fn visit_trait_item(&mut self, item: &'a TraitItem) {
        if let TraitItem::Fn(function) = item
            && let Some(block) = &function.default
        {
            self.measure(&function.sig, block);
        }
        visit::visit_trait_item(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[&str]) {
        let target = Target {
            package: "p".to_owned(),
            modules: vec![Module::parse(&[], "a.rs", text).unwrap()],
        };
        let found = problems(&[target]);
        let found: Vec<&str> = found
            .iter()
            .map(String::as_str)
            .filter(|problem| problem.starts_with("a.rs"))
            .collect();
        assert_eq!(found, expect);
    }

    fn function(lines: usize) -> String {
        format!("fn f() {{\n{}}}\n", "let a = 1;\n".repeat(lines - 2))
    }

    #[test]
    fn long_functions_are_found_wherever_they_stand() {
        let (fits, long) = (function(100), function(101));
        check(&format!("//! A.\n{fits}"), &[]);
        let expect = "a.rs:2: f has 101 lines, 100 at most";
        check(&format!("//! A.\n{long}"), &[expect]);
        let expect = "a.rs:3: f has 101 lines, 100 at most";
        check(&format!("//! A.\nimpl A {{\n{long}}}"), &[expect]);
        check(&format!("//! A.\ntrait A {{\n{long}}}"), &[expect]);
        check(
            &format!("//! A.\nfn a() {{\n{long}}}"),
            &["a.rs:2: a has 103 lines, 100 at most", expect],
        );
        check(
            &format!("//! A.\n#[cfg(test)]\nmod tests {{\n{long}}}"),
            &[],
        );
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let lines = |count: usize| "const A: u8 = 1;\n".repeat(count);
        check(&format!("//! A.\n{}", lines(699)), &[]);
        check(
            &format!("//! A.\n{}", lines(700)),
            &["a.rs: 701 lines, 700 at most"],
        );
        let tests = lines(500);
        check(
            &format!(
                "//! A.\n{}#[cfg(test)]\nmod tests {{\n{tests}}}",
                lines(699)
            ),
            &[],
        );
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        check("/// Of f.\nfn f() {}", &["a.rs: no //! says what it owns"]);
    }
}
