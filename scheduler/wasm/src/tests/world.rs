//! What a component finds around itself: of WASI what it needs to start, and nothing else.

use super::*;

/// The interfaces of WASI these tests import, in their later version.
const WASI: &str = r#"
package wasi:random@0.2.6 {
    interface random { get-random-u64: func() -> u64; }
}
package wasi:clocks@0.2.6 {
    interface wall-clock {
        record datetime { seconds: u64, nanoseconds: u32 }
        now: func() -> datetime;
    }
    interface monotonic-clock { now: func() -> u64; }
}
package wasi:cli@0.2.6 {
    interface environment {
        get-environment: func() -> list<tuple<string, string>>;
        get-arguments: func() -> list<string>;
    }
    interface exit { exit: func(status: result); }
    interface stdout {
        use wasi:io/streams@0.2.6.{output-stream};
        get-stdout: func() -> output-stream;
    }
    interface stderr {
        use wasi:io/streams@0.2.6.{output-stream};
        get-stderr: func() -> output-stream;
    }
}
package wasi:io@0.2.6 {
    interface error { resource error; }
    interface streams {
        use error.{error};
        variant stream-error { last-operation-failed(error), closed }
        resource output-stream {
            blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
        }
    }
}
package wasi:filesystem@0.2.6 {
    interface types {
        resource descriptor;
        enum error-code { access }
        filesystem-error-code: func(of: u32) -> option<error-code>;
    }
    interface preopens {
        use types.{descriptor};
        get-directories: func() -> list<tuple<descriptor, string>>;
    }
}
package wasi:sockets@0.2.6 {
    interface network { open: func() -> u32; }
}
"#;

/// The guest, with imports, whose score is what `body` leaves (an `i64`), for every node. An import goes by the last word of its name.
fn guest_of(imports: &[(&str, &str, &str)], body: &str) -> Vec<u8> {
    let (mut world, mut module) = (String::new(), String::new());
    for (interface, function, signature) in imports {
        let name = function.rsplit('.').next().unwrap_or(function);
        world += &format!("    import {interface};\n");
        module += &format!("(import \"{interface}\" \"{function}\" (func ${name} {signature}))\n");
    }
    let wit = WIT.replace("    import log;\n", &format!("    import log;\n{world}")) + WASI;
    let guest = GUEST
        .replace("(memory (export", &format!("{module}(memory (export"))
        .replace("(call $free_percent", "(call $of_world")
        .replace(
            "(func $times_told",
            &format!("(func $of_world (param i32) (result i64) {body})\n(func $times_told"),
        );
    component(&wit, &guest)
}

fn score_in_world(imports: &[(&str, &str, &str)], body: &str) -> Result<i64, Status> {
    let plugin = plugin_with(&guest_of(imports, body), json!({})).expect("it is a plugin");
    let snapshot = cluster(&["1"]);
    score_of(&*plugin, &pod(0), snapshot.get("n0").expect("is there"))
}

#[test]
fn time_stands_still_and_chance_repeats() {
    let random = ("wasi:random/random@0.2.6", "get-random-u64", "(result i64)");
    let below_100 = "(i64.rem_u (call $get-random-u64) (i64.const 100))";
    let first = score_in_world(&[random], below_100).expect("scores");
    assert_eq!(score_in_world(&[random], below_100), Ok(first));
    // One number after the other is another.
    let differs = "(i64.extend_i32_u (i64.ne (call $get-random-u64) (call $get-random-u64)))";
    assert_eq!(score_in_world(&[random], differs), Ok(1));
    let monotonic = ("wasi:clocks/monotonic-clock@0.2.6", "now", "(result i64)");
    assert_eq!(score_in_world(&[monotonic], "(call $now)"), Ok(0));
    let wall = ("wasi:clocks/wall-clock@0.2.6", "now", "(param i32)");
    let seconds = "(i64.store (i32.const 32) (i64.const 9)) (call $now (i32.const 32)) (i64.load (i32.const 32))";
    assert_eq!(score_in_world(&[wall], seconds), Ok(0));
}

#[test]
fn there_are_no_arguments_no_environment_and_no_directories() {
    for (interface, function) in [
        ("wasi:cli/environment@0.2.6", "get-environment"),
        ("wasi:cli/environment@0.2.6", "get-arguments"),
        ("wasi:filesystem/preopens@0.2.6", "get-directories"),
    ] {
        let body = format!(
            "(i64.store (i32.const 32) (i64.const -1)) (call ${function} (i32.const 32)) (i64.load32_u (i32.const 36))"
        );
        let imports = [(interface, function, "(param i32)")];
        assert_eq!(score_in_world(&imports, &body), Ok(0), "{function}");
    }
}

#[test]
fn what_is_written_is_taken() {
    let written = [
        ("wasi:cli/stderr@0.2.6", "get-stderr", "(result i32)"),
        (
            "wasi:io/streams@0.2.6",
            "[method]output-stream.blocking-write-and-flush",
            "(param i32 i32 i32 i32)",
        ),
    ];
    // What it writes is "not today"; the result's discriminant is 0.
    let body = "(i64.store (i32.const 32) (i64.const -1)) (call $blocking-write-and-flush (call $get-stderr) (i32.const 576) (i32.const 9) (i32.const 32)) (i64.load8_u (i32.const 32))";
    assert_eq!(score_in_world(&written, body), Ok(0));
}

#[test]
fn anything_else_ends_the_call_by_name() {
    let files = (
        "wasi:filesystem/types@0.2.6",
        "filesystem-error-code",
        "(param i32 i32)",
    );
    let body = "(call $filesystem-error-code (i32.const 0) (i32.const 32)) (i64.const 0)";
    let error = score_in_world(&[files], body).expect_err("there are no files");
    assert_eq!(
        error.message(),
        "its WASM component trapped in score: unknown import: `wasi:filesystem/types@0.2.6#filesystem-error-code` has not been defined"
    );
    let sockets = ("wasi:sockets/network@0.2.6", "open", "(result i32)");
    let body = "(i64.extend_i32_u (call $open))";
    let error = score_in_world(&[sockets], body).expect_err("there is no network");
    assert!(
        error.message().contains("wasi:sockets/network@0.2.6#open"),
        "{error}"
    );
    let exit = ("wasi:cli/exit@0.2.6", "exit", "(param i32)");
    let body = "(call $exit (i32.const 1)) (i64.const 0)";
    let error = score_in_world(&[exit], body).expect_err("it exited");
    assert!(error.message().contains("it exited"), "{error}");
}
