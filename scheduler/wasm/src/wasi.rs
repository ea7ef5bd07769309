//! The empty world that components of common toolchains need to start: what they import of WASI 0.2.
//!
//! There are no files, no network, no arguments and no environment. What is written to stdout and stderr is a line in the log. Time stands still and random numbers are the same
//! in every instance, since answers are kept and must not depend on either. Whatever else is imported of WASI ends the call that asks for it.

use std::collections::BTreeSet;

use wasmtime::Result;
use wasmtime::component::{Linker, Resource};

use crate::bindings::Level;
use crate::host::Host;
use types::{DateTime, StreamError};

/// Versions that are the same as far as this goes.
const VERSIONS: &str = "0.2.";
/// How much may be written at once, as a stream says.
const WRITABLE_BYTES: u64 = 64 << 10;

const STDOUT: u32 = 1;
const STDERR: u32 = 2;

/// Streams, errors, directories: all are of the type that whatever is not there gets, too, so that they fit together.
type Thing = Resource<()>;

#[allow(
    unsafe_code,
    reason = "what is derived reads and writes a component's memory"
)]
mod types {
    use wasmtime::component::{ComponentType, Lift, Lower};

    #[derive(ComponentType, Lower, Lift, Clone, Copy)]
    #[component(record)]
    pub(super) struct DateTime {
        #[component(name = "seconds")]
        pub(super) seconds: u64,
        #[component(name = "nanoseconds")]
        pub(super) nanoseconds: u32,
    }

    #[derive(ComponentType, Lower, Lift)]
    #[component(variant)]
    pub(super) enum StreamError {
        #[component(name = "last-operation-failed")]
        #[allow(dead_code, reason = "no write fails")]
        LastOperationFailed(super::Thing),
        #[component(name = "closed")]
        Closed,
    }
}

/// `imports`: what the component asks for. Each version it names is given.
pub(crate) fn add_to_linker(linker: &mut Linker<Host>, imports: &[&str]) -> Result<()> {
    let versions: BTreeSet<&str> = imports
        .iter()
        .filter(|name| name.starts_with("wasi:"))
        .filter_map(|name| Some(name.rsplit_once('@')?.1))
        .filter(|version| version.starts_with(VERSIONS))
        .collect();
    for version in versions {
        let named = |interface: &str| format!("wasi:{interface}@{version}");
        command_line(linker, &named)?;
        streams(linker, &named)?;
        random(linker, &named)?;
        clocks(linker, &named)?;
        files(linker, &named)?;
    }
    Ok(())
}

/// The full name of an interface.
type Named<'a> = &'a dyn Fn(&str) -> String;

fn command_line(linker: &mut Linker<Host>, named: Named<'_>) -> Result<()> {
    let mut environment = linker.instance(&named("cli/environment"))?;
    environment.func_wrap("get-environment", |_, (): ()| {
        Ok((Vec::<(String, String)>::new(),))
    })?;
    environment.func_wrap("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    environment.func_wrap("initial-cwd", |_, (): ()| Ok((None::<String>,)))?;
    linker.instance(&named("cli/exit"))?.func_wrap(
        "exit",
        |_, (status,): (Result<(), ()>,)| -> Result<()> {
            wasmtime::bail!("it exited ({status:?})")
        },
    )?;
    for (interface, get, stream) in [
        ("cli/stdout", "get-stdout", STDOUT),
        ("cli/stderr", "get-stderr", STDERR),
    ] {
        let get_stream =
            move |_: wasmtime::StoreContextMut<'_, Host>, (): ()| Ok((Thing::new_own(stream),));
        linker
            .instance(&named(interface))?
            .func_wrap(get, get_stream)?;
    }
    for (interface, get) in [
        ("cli/terminal-stdin", "get-terminal-stdin"),
        ("cli/terminal-stdout", "get-terminal-stdout"),
        ("cli/terminal-stderr", "get-terminal-stderr"),
    ] {
        let mut terminal = linker.instance(&named(interface))?;
        terminal.func_wrap(get, |_, (): ()| Ok((None::<Thing>,)))?;
    }
    let mut stdin = linker.instance(&named("cli/stdin"))?;
    stdin.func_wrap("get-stdin", |_, (): ()| Ok((Thing::new_own(0),)))
}

fn streams(linker: &mut Linker<Host>, named: Named<'_>) -> Result<()> {
    let mut io = linker.instance(&named("io/streams"))?;
    for read in [
        "[method]input-stream.read",
        "[method]input-stream.blocking-read",
    ] {
        io.func_wrap(read, |_, (_, _): (Thing, u64)| {
            Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
        })?;
    }
    io.func_wrap("[method]output-stream.check-write", |_, (_,): (Thing,)| {
        Ok((Ok::<_, StreamError>(WRITABLE_BYTES),))
    })?;
    for write in [
        "[method]output-stream.write",
        "[method]output-stream.blocking-write-and-flush",
    ] {
        io.func_wrap(write, |mut store, (stream, bytes): (Thing, Vec<u8>)| {
            let level = match stream.rep() {
                STDERR => Level::Warn,
                _ => Level::Info,
            };
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end();
            if !text.is_empty() {
                store.data_mut().log(level, text);
            }
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    for flush in [
        "[method]output-stream.flush",
        "[method]output-stream.blocking-flush",
    ] {
        io.func_wrap(flush, |_, (_,): (Thing,)| Ok((Ok::<(), StreamError>(()),)))?;
    }
    Ok(())
}

fn random(linker: &mut Linker<Host>, named: Named<'_>) -> Result<()> {
    for (interface, bytes, number) in [
        ("random/random", "get-random-bytes", "get-random-u64"),
        (
            "random/insecure",
            "get-insecure-random-bytes",
            "get-insecure-random-u64",
        ),
    ] {
        let mut random = linker.instance(&named(interface))?;
        random.func_wrap(bytes, |mut store, (length,): (u64,)| {
            Ok((store.data_mut().random.bytes(length)?,))
        })?;
        random.func_wrap(number, |mut store, (): ()| {
            Ok((store.data_mut().random.next(),))
        })?;
    }
    let mut seed = linker.instance(&named("random/insecure-seed"))?;
    seed.func_wrap("insecure-seed", |mut store, (): ()| {
        let random = &mut store.data_mut().random;
        Ok(((random.next(), random.next()),))
    })
}

fn clocks(linker: &mut Linker<Host>, named: Named<'_>) -> Result<()> {
    let mut monotonic = linker.instance(&named("clocks/monotonic-clock"))?;
    monotonic.func_wrap("now", |_, (): ()| Ok((0u64,)))?;
    monotonic.func_wrap("resolution", |_, (): ()| Ok((1u64,)))?;
    let mut wall = linker.instance(&named("clocks/wall-clock"))?;
    for what in ["now", "resolution"] {
        wall.func_wrap(what, |_, (): ()| {
            let never = DateTime {
                seconds: 0,
                nanoseconds: 0,
            };
            Ok((never,))
        })?;
    }
    Ok(())
}

fn files(linker: &mut Linker<Host>, named: Named<'_>) -> Result<()> {
    let mut preopens = linker.instance(&named("filesystem/preopens"))?;
    preopens.func_wrap("get-directories", |_, (): ()| {
        Ok((Vec::<(Thing, String)>::new(),))
    })
}
