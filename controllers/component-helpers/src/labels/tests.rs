use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

fn labels(text: &str) -> BTreeMap<String, String> {
    text.split(',')
        .filter_map(|kv| kv.split_once('='))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

#[test]
fn string_selectors() {
    for (selector, text, expect) in [
        ("", "x=y", true),
        ("x=y", "x=y", true),
        ("x==y", "x=y", true),
        ("x=y", "x=z", false),
        ("x=y,z=w", "x=y,z=w", true),
        ("x!=y,z!=w", "x=z,z=a", true),
        ("x!=y", "", true),
        ("x", "x=", true),
        ("x", "y=1", false),
        ("!x", "y=1", true),
        ("!x", "x=1", false),
        ("x in (a,b)", "x=b", true),
        ("x in (a, b ,)", "x=", true),
        ("x notin (a,b)", "x=c", true),
        ("x notin (a,b)", "", true),
        ("x notin (a,b)", "x=a", false),
        ("x>1", "x=2", true),
        ("x>1", "x=1", false),
        ("x<3", "x=2", true),
        ("x<3", "x=text", false),
        ("x=", "x=", true),
        ("x=,y", "x=,y=1", true),
        ("example.com/a=b", "example.com/a=b", true),
        (" x = y , z in ( 1 ) ", "x=y,z=1", true),
        ("in in (in)", "in=in", true),
    ] {
        let parsed = Selector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
        assert_eq!(
            parsed.matches(&labels(text)),
            expect,
            "{selector} on {text}"
        );
        assert_eq!(
            Selector::parse(&parsed.to_string()).as_ref(),
            Ok(&parsed),
            "{selector} does not survive printing"
        );
    }
}

#[test]
fn rejected_string_selectors() {
    for selector in [
        "x=a||y=b",
        "x==a==b",
        "!x=a",
        "x<a",
        "x>1.1",
        ",",
        "x in",
        "x in (",
        "x in a",
        "x=y,",
        "a/b/c=d",
        "-x=y",
        "x=-y",
        "x in (a b)",
    ] {
        assert!(Selector::parse(selector).is_err(), "{selector}");
    }
}

#[test]
fn structured_selectors() {
    let expression = |key: &str, operator: &str, values: &[&str]| LabelSelectorRequirement {
        key: key.into(),
        operator: operator.into(),
        values: Some(values.iter().map(|v| v.to_string()).collect()),
    };
    let selector = LabelSelector {
        match_labels: Some(labels("app=web")),
        match_expressions: Some(vec![
            expression("tier", "NotIn", &["db"]),
            expression("rev", "Exists", &[]),
        ]),
    };
    let selector = Selector::new(&selector).unwrap();
    assert!(selector.matches(&labels("app=web,rev=1")));
    assert!(!selector.matches(&labels("app=web,rev=1,tier=db")));
    assert!(!selector.matches(&labels("app=web")));
    assert_eq!(selector.to_string(), "app=web,rev,tier notin (db)");

    assert!(
        Selector::new(&LabelSelector::default())
            .unwrap()
            .is_everything()
    );
    assert!(Selector::from_optional(None).unwrap().is_nothing());
    assert!(!Selector::nothing().matches(&labels("")));
    for bad in [
        expression("a", "In", &[]),
        expression("a", "Exists", &["x"]),
        expression("a", "Near", &[]),
        expression("a", "Gt", &["1"]),
    ] {
        assert!(
            Selector::new(&LabelSelector {
                match_labels: None,
                match_expressions: Some(vec![bad])
            })
            .is_err()
        );
    }
    assert!(
        Selector::everything()
            .and(Requirement::equals("a", "b"))
            .matches(&labels("a=b"))
    );
}
