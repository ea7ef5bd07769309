//! Expressions over a device. Cases: upstream's cel/compile_test.go, v1.37, in words of our own.

use serde_json::{Value, json};

use super::*;
use crate::device::Slice;

/// What an expression gives for a device of the driver `dra.example.com`; an error's text otherwise.
fn ask(device: Value, expression: &str) -> Result<bool, String> {
    let mut device = device;
    device["name"] = "d".into();
    let slice = json!({"metadata": {"name": "s"}, "spec": {"driver": "dra.example.com", "nodeName": "n",
        "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [device]}});
    let slice = Slice::new(Arc::new(serde_json::from_value(slice).expect("a slice")));
    let selector = Selectors::new().compile(expression);
    let selector = selector.map_err(|error| error.to_string())?;
    selector
        .matches(slice.devices[0].variable())
        .map_err(|error| error.to_string())
}

fn gpu() -> Value {
    json!({
        "attributes": {"model": {"string": "A100"}, "cores": {"int": 7}, "healthy": {"bool": true},
            "firmware": {"version": "1.10.2-rc.1"}, "other.example.com/slot": {"int": 3}},
        "capacity": {"memory": {"value": "40Gi"}, "other.example.com/lanes": {"value": "500m"}},
        "allowMultipleAllocations": true,
    })
}

#[test]
fn expressions_that_say_yes() {
    for expression in [
        "true",
        "device.driver == 'dra.example.com'",
        "device.attributes['dra.example.com'].model == \"A100\"",
        "device.attributes[\"dra.example.com\"].cores > 5 && device.attributes['dra.example.com'].healthy",
        "device.attributes['other.example.com'].slot == 3",
        "device.attributes['dra.example.com'].healthy",
        "device.allowMultipleAllocations",
        "device.attributes['dra.example.com'].firmware.isGreaterThan(semver('1.9.0'))",
        "device.attributes['dra.example.com'].firmware.compareTo(semver('1.10.2')) == -1",
        "device.attributes['dra.example.com'].firmware.minor() == 10",
        "semver('v1.02', true) == semver('1.2.0') && !isSemver('v1.2')",
        "semver('1.2.3+a') == semver('1.2.3+b')",
        "device.capacity['dra.example.com'].memory.isGreaterThan(quantity('39Gi'))",
        "device.capacity['dra.example.com'].memory.compareTo(quantity('40960Mi')) == 0",
        "device.capacity['dra.example.com'].memory == quantity('40Gi')",
        "device.capacity['dra.example.com'].memory >= quantity('1') || true",
        "quantity('50k').add(20).sub(quantity('100k')).sub(-50000) == quantity('20')",
        "quantity('1.5').sign() == 1 && !quantity('1.5').isInteger() && quantity('3k').asInteger() == 3000",
        "device.capacity['other.example.com'].lanes.asApproximateFloat() == 0.5",
        "isQuantity('1Ki') && !isQuantity('1KI')",
        "has(device.attributes['dra.example.com'].model)",
        "!has(device.attributes['dra.example.com'].nothing)",
        "!has(device.attributes['nobody.example.com'].model)",
        "'dra.example.com' in device.attributes && !('nobody.example.com' in device.attributes)",
        "'model' in device.attributes['dra.example.com']",
        "device.attributes['dra.example.com'].?nothing.orValue('x') == 'x'",
        "device.attributes['nobody.example.com'].?nothing.orValue(true)",
        "cel.bind(dra, device.attributes['dra.example.com'], dra.healthy && dra.cores == 7)",
        "device.attributes['dra.example.com'].model.lowerAscii().startsWith('a1')",
        "device.attributes['dra.example.com'].model.matches('^A[0-9]+$')",
        "device.attributes['dra.example.com'].model.find('[0-9]+') == '100'",
        "'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1b22'.findAll('[0-9]+', 1) == ['1']",
        "device.attributes['dra.example.com'].model in ['H100', 'A100']",
        "['H100', 'A100'].exists(m, m == device.attributes['dra.example.com'].model)",
        "device.attributes['dra.example.com'].all(k, size(k) > 2)",
        "size(device.attributes) == 2 && size(device.attributes['dra.example.com']) == 4",
        "sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2]) && sets.equivalent([1, 1], [1])",
        "[3, 1, 2].max() == 3 && [3, 1, 2].min() == 1 && [1, 2].isSorted() && [1, 2, 1].lastIndexOf(1) == 2",
        "[1, 2].includes(2) && 'a'.includes('a')",
        "false || device.attributes['dra.example.com'].nothing == 1 || true",
        "!(device.attributes['dra.example.com'].nothing == 1 && false)",
        "type(device.attributes['dra.example.com'].cores) == int",
    ] {
        assert_eq!(ask(gpu(), expression), Ok(true), "{expression}");
    }
}

#[test]
fn expressions_that_say_no() {
    for expression in [
        "false",
        "device.driver == 'other'",
        "device.attributes['dra.example.com'].model == 7",
        "device.attributes['dra.example.com'].cores < 7",
        "device.capacity['dra.example.com'].memory.isLessThan(quantity('40Gi'))",
    ] {
        assert_eq!(ask(gpu(), expression), Ok(false), "{expression}");
    }
    assert_eq!(ask(json!({}), "device.allowMultipleAllocations"), Ok(false));
}

#[test]
fn what_is_wrong_is_said_with_the_expression() {
    let check = |device: Value, expression: &str, expect: &str| {
        let error = ask(device, expression).expect_err(expression);
        assert!(
            error.contains(expect) && error.contains(expression),
            "{error}"
        );
    };
    check(gpu(), "device.driver ==", "CEL compile error");
    check(
        gpu(),
        "device.attributes['dra.example.com'].nothing == 1",
        "no such key: nothing. consider using CEL optional chaining",
    );
    check(gpu(), "device.nothing", "no such key: nothing");
    check(
        gpu(),
        "device.attributes['dra.example.com'].model",
        "CEL result of type string could not be converted to bool",
    );
    check(gpu(), "isIP('::1')", "Undeclared reference to 'isIP'");
    check(gpu(), "nothing.at.all", "Undeclared reference");
    check(gpu(), "quantity('many').isInteger()", "quantit");
    check(gpu(), "semver('1.2') == semver('1.2.0')", "semver");
    check(
        json!({"attributes": {"v": {"version": "1.0"}}}),
        "true",
        "attribute v: parse semantic version",
    );
    check(
        json!({"attributes": {"v": {}}}),
        "true",
        "attribute v: unsupported attribute value",
    );
    for deep in [
        format!("{}true{}", "(".repeat(5000), ")".repeat(5000)),
        format!("{}true{}", "[".repeat(5000), "]".repeat(5000)),
        format!("{}true", "true?true:".repeat(1000)),
        format!("1{} == 1", "+1".repeat(5000)),
        format!("{}true", "!".repeat(10_000)),
        "x".repeat(20_000),
    ] {
        let answer = ask(gpu(), &deep);
        let read = answer
            .as_ref()
            .err()
            .is_none_or(|error| error.contains("CEL compile error"));
        assert!(read, "{answer:?}");
    }
    let nested = format!("{}true{}", "[".repeat(40), "]".repeat(40));
    let even = format!("{nested} == {nested}");
    assert_eq!(ask(gpu(), &even), Ok(true), "as deep as people write");
}

#[test]
fn attributes_of_several_values() {
    let device = json!({"attributes": {"models": {"strings": ["a", "b"]}, "versions": {"versions": ["1.0.0"]}}});
    for expression in [
        "device.attributes['dra.example.com'].models.exists(m, m == 'b')",
        "device.attributes['dra.example.com'].models.includes('a')",
        "device.attributes['dra.example.com'].versions.all(v, v.major() == 1)",
    ] {
        assert_eq!(ask(device.clone(), expression), Ok(true), "{expression}");
    }
}
