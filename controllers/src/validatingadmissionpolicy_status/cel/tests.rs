use std::collections::{BTreeMap, HashMap};

use super::*;

fn object(fields: &[(&str, Type)]) -> Type {
    let fields: BTreeMap<String, Type> = fields
        .iter()
        .map(|(name, of)| ((*name).to_owned(), of.clone()))
        .collect();
    Type::object("Thing", fields)
}

fn variables() -> HashMap<String, Type> {
    let container = object(&[("image", Type::String), ("ports", Type::list(Type::Int))]);
    let spec = object(&[
        ("replicas", Type::Int),
        ("ratio", Type::Double),
        ("when", Type::Timestamp),
        ("containers", Type::list(container)),
        ("labels", Type::map(Type::String, Type::String)),
        ("any", Type::Dyn),
    ]);
    let thing = object(&[("spec", spec), ("name", Type::String)]);
    HashMap::from([
        ("object".to_owned(), thing.clone()),
        ("oldObject".to_owned(), thing),
        ("params".to_owned(), Type::Dyn),
        (
            "authorizer".to_owned(),
            Type::opaque("kubernetes.authorization.Authorizer"),
        ),
    ])
}

/// The type, or the first issue's message.
fn check_one(text: &str, expect: &str) {
    let found = match check(text, &variables()) {
        Err(error) => error.to_string(),
        Ok((of, issues)) => match issues.first() {
            None => of.to_string(),
            Some(issue) => issue.message.clone(),
        },
    };
    assert_eq!(found, expect, "{text}");
}

#[test]
fn what_is_right_has_a_type() {
    for (text, expect) in [
        ("object.spec.replicas > 1", "bool"),
        ("object.spec.replicas > 1.5 && object.name != ''", "bool"),
        ("object.spec.replicas + 1", "int"),
        ("-object.spec.ratio * 2.0", "double"),
        ("!!has(object.spec.labels.a) || !(1 in [1, 2])", "bool"),
        (
            "object.spec.containers.all(c, c.image.startsWith('a') && c.ports.size() < 3)",
            "bool",
        ),
        ("object.spec.containers.map(c, c.image)", "list(string)"),
        (
            "object.spec.containers.map(c, c.ports.size() > 0, c.ports)",
            "list(list(int))",
        ),
        (
            "object.spec.containers.filter(c, c.image == 'x')[0].image",
            "string",
        ),
        ("object.spec.labels.exists_one(k, k == 'a')", "bool"),
        (
            "object.spec.labels.transformList(k, v, k + v)",
            "list(string)",
        ),
        ("object.spec.labels['a']", "string"),
        ("object.spec.labels.a", "string"),
        ("object.spec.any.thing.other > 'x'", "bool"),
        ("params.x == object.name", "bool"),
        ("params == null || object == null", "bool"),
        ("oldObject == null ? object.spec.replicas : 0", "int"),
        ("object.?spec.?replicas.orValue(1)", "int"),
        ("object.spec.labels[?'a'].hasValue()", "bool"),
        ("optional.of(1).optMap(v, v + 1)", "optional_type(int)"),
        ("[] + [1]", "list(int)"),
        ("[]", "list(dyn)"),
        ("{'a': [1], 'b': []}", "map(string, list(int))"),
        ("type(object.spec.any) == string", "bool"),
        (
            "'%s is %d'.format([object.name, object.spec.replicas])",
            "string",
        ),
        (
            "object.spec.when + duration('1h') > timestamp('2026-01-01T00:00:00Z')",
            "bool",
        ),
        ("object.spec.when - object.spec.when", "duration"),
        (
            "authorizer.group('').resource('endpoints').check('create').allowed()",
            "bool",
        ),
        ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", "dyn"),
        ("lists.range(3).nobody()", "dyn"),
        ("r'\\d+' + \"a\\\"b\" + '''c'd''' // a comment", "string"),
        ("1e3 + .5 + 1.5e-2", "double"),
        ("0x1F + -1", "int"),
        ("2u > 1 && b'a' == b\"b\"", "bool"),
        ("object.`spec`.replicas", "int"),
        ("sets.contains([1], [1, 2])", "bool"),
        ("dyn(1) + 'a'", "string"),
    ] {
        check_one(text, expect);
    }
}

#[test]
fn what_is_wrong_is_told_in_upstreams_words() {
    for (text, expect) in [
        (
            "object.spec.replicas > '1'",
            "found no matching overload for '_>_' applied to '(int, string)'",
        ),
        (
            "'wants ' + object.spec.replicas",
            "found no matching overload for '_+_' applied to '(string, int)'",
        ),
        (
            "object.spec.maxRetries < 10",
            "undefined field 'maxRetries'",
        ),
        ("has(object.spek)", "undefined field 'spek'"),
        (
            "authorizer.allowed()",
            "found no matching overload for 'allowed' applied to 'kubernetes.authorization.Authorizer.()'",
        ),
        (
            "object.spec.replicas && true",
            "expected type 'bool' but found 'int'",
        ),
        (
            "object.name.first",
            "type 'string' does not support field selection",
        ),
        (
            "object.name.all(c, true)",
            "expression of type 'string' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        (
            "object.spec.containers.all(c, c.image)",
            "expected type 'bool' but found 'string'",
        ),
        (
            "object.spec.containers.filter(c, c.image)",
            "found no matching overload for '_?_:_' applied to '(string, list(Thing), list(Thing))'",
        ),
        (
            "object.spec.containers.exists(c, c.imige == 'a')",
            "undefined field 'imige'",
        ),
        (
            "object.spec.containers['a']",
            "found no matching overload for '_[_]' applied to '(list(Thing), string)'",
        ),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        (
            "nobody.name",
            "undeclared reference to 'nobody' (in container '')",
        ),
        (
            "object.spec.replicas.startsWith('a')",
            "found no matching overload for 'startsWith' applied to 'int.(string)'",
        ),
        (
            "true ? 1 : 'a'",
            "found no matching overload for '_?_:_' applied to '(bool, int, string)'",
        ),
        (
            "object.name == 1",
            "found no matching overload for '_==_' applied to '(string, int)'",
        ),
        (
            "object.spec.replicas == null",
            "found no matching overload for '_==_' applied to '(int, null)'",
        ),
        ("1 +", "Syntax error: unexpected '<EOF>'"),
        ("a.", "Syntax error: unexpected '<EOF>'"),
        ("'a", "Syntax error: a string does not end"),
        ("a ~ b", "Syntax error: token recognition error at: '~'"),
        (")", "Syntax error: unexpected ')'"),
        ("", "Syntax error: unexpected '<EOF>'"),
    ] {
        check_one(text, expect);
    }
}

#[test]
fn issues_are_shown_with_their_line() {
    let text = "object.spec.replicas > '1' ||\n  'ä' + object.nome != 'x'";
    let (_, issues) = check(text, &variables()).unwrap();
    let expect = "ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n \
         | object.spec.replicas > '1' ||\n | .....................^\n\
         ERROR: <input>:2:15: undefined field 'nome'\n |   'ä' + object.nome != 'x'\n | ...．..........^";
    assert_eq!(display(text, &issues), expect);
}

#[test]
fn what_is_endless_is_refused() {
    for text in [
        "(".repeat(100_000),
        format!("a{}", ".b".repeat(100_000)),
        format!("1{}", "+1".repeat(100_000)),
        "[".repeat(100_000),
        "a?b:".repeat(100_000),
    ] {
        let run = move || check(&text, &HashMap::new()).is_err();
        // As large as the checker's own thread's.
        let thread = std::thread::Builder::new().stack_size(16 << 20).spawn(run);
        assert!(thread.unwrap().join().unwrap());
    }
    let long = format!("true{}", "&& true".repeat(10_000));
    assert!(check(&long, &HashMap::new()).is_ok());
    assert!(check(&"!".repeat(100_000), &HashMap::new()).is_err());
}
