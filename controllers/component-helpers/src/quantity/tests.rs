use super::*;

fn amount_of(text: &str) -> Amount {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn canonical_form() {
    for (text, expect) in [
        ("0", "0"),
        ("0Ki", "0"),
        ("1.5", "1500m"),
        ("1.5Gi", "1536Mi"),
        ("1024", "1024"),
        ("1024Ki", "1Mi"),
        ("1000Ki", "1000Ki"),
        ("0.5Ki", "512"),
        ("1000", "1k"),
        ("1500m", "1500m"),
        ("1000m", "1"),
        ("100m", "100m"),
        ("0.1m", "100u"),
        ("1n", "1n"),
        ("0.1n", "1n"),
        ("-0.1n", "-1n"),
        ("1e3", "1e3"),
        ("1E3", "1e3"),
        ("12e-3", "12e-3"),
        ("100", "100"),
        (".5", "500m"),
        ("5.", "5"),
        ("+5", "5"),
        ("-5Mi", "-5Mi"),
        ("0.001Ki", "1024m"),
        ("1.1Ki", "1126400m"),
        ("9223372036854775807", "9223372036854775807"),
        ("9223372036854775808", "9223372036854775807"),
        ("100E", "9223372036854775807"),
        ("1e30", "9223372036854775807"),
        ("8Ei", "9223372036854775807"),
        ("7Ei", "7Ei"),
        ("0.000000000000000000000001", "1n"),
        ("123456789012345678901234567890", "9223372036854775807"),
        ("1.0000000000000000000000000000000", "1"),
        ("128974848", "128974848"),
        ("129e6", "129e6"),
        ("129M", "129M"),
        ("123Mi", "123Mi"),
    ] {
        assert_eq!(amount_of(text).canonical(), expect, "{text}");
    }
}

#[test]
fn rejected() {
    use ParseQuantityError::*;
    for (text, expect) in [
        ("", FormatWrong),
        ("-", FormatWrong),
        (".", Numeric),
        ("1.1.M", FormatWrong),
        ("1+1.0M", FormatWrong),
        ("0.1mi", Suffix),
        ("0.1am", FormatWrong),
        ("1i", Suffix),
        ("1ki", Suffix),
        ("1e", Suffix),
        ("1ee3", Suffix),
        ("a1", FormatWrong),
        (" 1", FormatWrong),
        ("1 ", FormatWrong),
        ("1 M", FormatWrong),
    ] {
        assert_eq!(text.parse::<Amount>(), Err(expect), "{text:?}");
    }
}

#[test]
fn values_round_away_from_zero() {
    for (text, value, milli) in [
        ("1", 1, 1000),
        ("1m", 1, 1),
        ("1u", 1, 1),
        ("-1u", -1, -1),
        ("1500m", 2, 1500),
        ("1.0001", 2, 1001),
        ("250Mi", 262_144_000, 262_144_000_000),
        ("9223372036854775807", i64::MAX, i64::MAX),
    ] {
        assert_eq!(
            (amount_of(text).value(), amount_of(text).milli_value()),
            (value, milli),
            "{text}"
        );
    }
}

#[test]
fn arithmetic_and_order() {
    assert_eq!(
        (amount_of("1Gi") + amount_of("512Mi")).canonical(),
        "1536Mi"
    );
    assert_eq!((Amount::ZERO + amount_of("1Gi")).canonical(), "1Gi");
    assert_eq!((amount_of("1") - amount_of("100m")).canonical(), "900m");
    assert_eq!((amount_of("9E") + amount_of("9E")).value(), i64::MAX);
    assert_eq!(amount_of("1k"), amount_of("1000"));
    assert!(amount_of("1k") < amount_of("1Ki"));
    assert_eq!(amount_of("100m").mul_int(10).canonical(), "1");
    assert_eq!(
        ["100m", "200m"]
            .map(amount_of)
            .into_iter()
            .sum::<Amount>()
            .canonical(),
        "300m"
    );
}
