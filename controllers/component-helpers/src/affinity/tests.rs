use super::*;
use k8s_openapi::api::core::v1::NodeSelectorRequirement;

fn requirement(text: &str) -> NodeSelectorRequirement {
    let mut words = text.split_whitespace().map(str::to_string);
    let (key, operator) = (words.next().unwrap(), words.next().unwrap());
    NodeSelectorRequirement {
        key,
        operator,
        values: Some(words.collect()),
    }
}

fn term(expressions: &[&str], fields: &[&str]) -> NodeSelectorTerm {
    let all = |texts: &[&str]| {
        (!texts.is_empty()).then(|| texts.iter().map(|t| requirement(t)).collect())
    };
    NodeSelectorTerm {
        match_expressions: all(expressions),
        match_fields: all(fields),
    }
}

fn labels(text: &str) -> BTreeMap<String, String> {
    text.split(',')
        .filter_map(|kv| kv.split_once('='))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

#[test]
fn required_terms() {
    for (terms, node, expect) in [
        (vec![], "zone=a", false),
        (vec![term(&[], &[])], "zone=a", false),
        (vec![term(&["zone In a b"], &[])], "zone=a", true),
        (vec![term(&["zone In a b"], &[])], "zone=c", false),
        (vec![term(&["zone NotIn a"], &[])], "", true),
        (vec![term(&["cpus Gt 3"], &[])], "cpus=4", true),
        (vec![term(&["cpus Lt 3"], &[])], "cpus=4", false),
        (
            vec![term(&["zone Exists"], &[]), term(&["disk Exists"], &[])],
            "disk=ssd",
            true,
        ),
        (
            vec![term(&["zone Exists", "disk Exists"], &[])],
            "disk=ssd",
            false,
        ),
        (vec![term(&[], &["metadata.name In n1"])], "", true),
        (vec![term(&[], &["metadata.name NotIn n1"])], "", false),
        (vec![term(&[], &["metadata.name In n2"])], "", false),
        (
            vec![term(&["zone Exists"], &["metadata.name In n1"])],
            "",
            false,
        ),
        (
            vec![term(&["zone Exists"], &["metadata.name In n1"])],
            "zone=a",
            true,
        ),
        // A wrong term matches nothing; the others still count.
        (vec![term(&["zone Near a"], &[])], "zone=a", false),
        (
            vec![term(&["zone Near a"], &[]), term(&["zone In a"], &[])],
            "zone=a",
            true,
        ),
        (vec![term(&[], &["metadata.name In n1 n2"])], "", false),
    ] {
        let parsed = NodeSelectorTerms::new(&NodeSelector {
            node_selector_terms: terms.clone(),
        });
        assert_eq!(
            parsed.matches("n1", &labels(node)),
            expect,
            "{terms:?} on {node}"
        );
    }
    assert_eq!(
        NodeSelectorTerms::new(&NodeSelector {
            node_selector_terms: vec![term(&["a Near b"], &[])]
        })
        .errors()
        .len(),
        1
    );
}

#[test]
fn preferred_terms() {
    let preferred = |weight, preference| PreferredSchedulingTerm { weight, preference };
    let terms = PreferredSchedulingTerms::new(&[
        preferred(5, term(&["zone In a"], &[])),
        preferred(3, term(&["disk Exists"], &[])),
        preferred(0, term(&["disk Near x"], &[])),
        preferred(7, term(&[], &[])),
    ])
    .unwrap();
    assert_eq!(terms.score("n1", &labels("zone=a,disk=x")), 8);
    assert_eq!(terms.score("n1", &labels("disk=x")), 3);
    assert_eq!(terms.score("n1", &labels("")), 0);
    assert!(PreferredSchedulingTerms::new(&[preferred(1, term(&["disk Near x"], &[]))]).is_err());
}
