//! Makes the static table of messages from `schema.txt`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::{env, fs, path::Path};

const SCHEMA: &str = "schema.txt";

fn main() {
    println!("cargo:rerun-if-changed={SCHEMA}");
    let text = fs::read_to_string(SCHEMA).expect("schema.txt stands beside build.rs");
    let lines = || {
        text.lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
    };
    let indexes: BTreeMap<&str, usize> = lines()
        .filter_map(|l| l.strip_prefix("message "))
        .enumerate()
        .map(|(index, name)| (name, index))
        .collect();

    let mut kinds: Vec<_> = lines()
        .filter_map(|l| l.strip_prefix("kind "))
        .map(|rest| {
            let [group, version, kind, message] = words(rest);
            let group = if group == "-" { "" } else { group };
            (group, version, kind, indexes[message])
        })
        .collect();
    kinds.sort_unstable();
    let mut out = format!(
        "pub(crate) static KINDS: [(&str, &str, &str, u16); {}] = [\n",
        kinds.len()
    );
    for (group, version, kind, index) in kinds {
        writeln!(out, "({group:?}, {version:?}, {kind:?}, {index}),").expect("a String");
    }
    out.push_str("];\n");

    let mut messages: Vec<(&str, Vec<(u32, String)>)> = Vec::new();
    for line in lines().filter(|l| !l.starts_with("kind ")) {
        if let Some(name) = line.strip_prefix("message ") {
            messages.push((name, Vec::new()));
            continue;
        }
        let mut parts = line.split(' ');
        let mut next = || {
            parts
                .next()
                .unwrap_or_else(|| panic!("{line:?} is too short"))
        };
        let number: u32 = next().parse().expect("a field's number");
        let json = next();
        let rule = match next() {
            "one" => "One",
            "list" => "List",
            "map" => "Map",
            other => panic!("{other:?} in {line:?}"),
        };
        let kind = kind(next(), &indexes);
        let flags: Vec<&str> = parts.collect();
        let flag = |name: &str| flags.contains(&name);
        let field = format!(
            "Field {{ number: {number}, json: {json:?}, rule: Rule::{rule}, kind: {kind}, omit_zero: {}, inline: {} }}",
            flag("omitzero"),
            flag("inline")
        );
        let (_, fields) = messages
            .last_mut()
            .expect("a field stands below its message");
        fields.push((number, field));
    }
    writeln!(
        out,
        "pub(crate) static MESSAGES: [Message; {}] = [",
        messages.len()
    )
    .expect("a String");
    for (index, (name, mut fields)) in messages.into_iter().enumerate() {
        fields.sort_unstable_by_key(|(number, _)| *number);
        let fields: Vec<_> = fields.into_iter().map(|(_, text)| text).collect();
        let fields = fields.join(",\n");
        writeln!(
            out,
            "Message {{ name: {name:?}, index: {index}, fields: &[{fields}] }},"
        )
        .expect("a String");
    }
    out.push_str("];\n");
    let dir = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&dir).join("schema.rs"), out).expect("OUT_DIR is writable");
}

fn kind(word: &str, indexes: &BTreeMap<&str, usize>) -> String {
    let name = match word {
        "string" => "String",
        "bytes" => "Bytes",
        "int" => "Int",
        "bool" => "Bool",
        "quantity" => "Quantity",
        "time" => "Time",
        "microtime" => "MicroTime",
        "intorstring" => "IntOrString",
        "raw" => "Raw",
        "strings" => "Strings",
        message => return format!("Kind::Message({})", indexes[message]),
    };
    format!("Kind::{name}")
}

fn words(text: &str) -> [&str; 4] {
    let words: Vec<_> = text.split(' ').collect();
    words
        .try_into()
        .unwrap_or_else(|_| panic!("{text:?} has not four words"))
}
