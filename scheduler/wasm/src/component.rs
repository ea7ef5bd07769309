//! A component's file: read, checked, compiled and linked to what a plugin may call.

use std::path::Path;
use std::sync::OnceLock;

use wasmtime::component::types::Component as ComponentType;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine};

use crate::args::invalid_path;
use crate::bindings::{SchedulerPlugin, SchedulerPluginPre};
use crate::host::Host;
use crate::wasi;

/// What a component exports, with the version that is spoken here. Others of 0.1 are spoken, too.
pub const INTERFACE: &str = "gantry:scheduler/plugin@0.1.0";
/// Larger files are not read.
pub const MAX_COMPONENT_BYTES: u64 = 256 << 20;

/// A component of this name is a plugin, whatever the version.
const INTERFACE_NAME: &str = "gantry:scheduler/plugin@";
/// The versions that are spoken.
const SPOKEN: &str = "gantry:scheduler/plugin@0.1.";
/// What a component may import: what is not of these is refused.
const KNOWN_IMPORTS: [&str; 2] = ["gantry:scheduler/", "wasi:"];

/// One for all plugins: it holds no state of theirs.
fn engine() -> Result<&'static Engine, String> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    let made = ENGINE.get_or_init(|| {
        let mut config = Config::new();
        config.consume_fuel(true);
        // The same answer every time, also by instructions that leave it to the processor.
        config.relaxed_simd_deterministic(true);
        Engine::new(&config).map_err(|error| format!("WASM cannot run here: {error:#}"))
    });
    made.as_ref().map_err(Clone::clone)
}

/// Reads and compiles a component; what is wrong with it, as a problem of the field `path`.
pub(crate) fn load(path: &Path) -> Result<(Engine, SchedulerPluginPre<Host>), String> {
    let bytes = read(path).map_err(|why| invalid_path(path, why))?;
    link(&bytes).map_err(|why| invalid_path(path, why))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    if metadata.len() > MAX_COMPONENT_BYTES {
        let length = metadata.len();
        return Err(format!(
            "has {length} bytes, more than {MAX_COMPONENT_BYTES}"
        ));
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// Compiles a component and links it.
pub(crate) fn link(bytes: &[u8]) -> Result<(Engine, SchedulerPluginPre<Host>), String> {
    let engine = engine()?;
    let component = Component::from_binary(engine, bytes)
        .map_err(|error| format!("is no WASM component: {error:#}"))?;
    let shape = component.component_type();
    let imports: Vec<&str> = shape.imports(engine).map(|(name, _)| name).collect();
    check(&shape, engine, &imports)?;
    let linked = || {
        let mut linker: Linker<Host> = Linker::new(engine);
        SchedulerPlugin::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host)?;
        wasi::add_to_linker(&mut linker, &imports)?;
        // What of WASI is not there ends the call that asks for it.
        linker.define_unknown_imports_as_traps(&component)?;
        SchedulerPluginPre::new(linker.instantiate_pre(&component)?)
    };
    let linked = linked().map_err(|error| format!("does not fit {INTERFACE}: {error:#}"))?;
    Ok((engine.clone(), linked))
}

/// Does it export what a plugin does, and import nothing else than what there is?
fn check(component: &ComponentType, engine: &Engine, imports: &[&str]) -> Result<(), String> {
    let exports: Vec<&str> = component.exports(engine).map(|(name, _)| name).collect();
    let export = exports.iter().find(|name| name.starts_with(INTERFACE_NAME));
    match export {
        None => {
            return Err(format!(
                "exports no {INTERFACE}, but [{}]",
                exports.join(", ")
            ));
        }
        Some(found) if !found.starts_with(SPOKEN) => {
            return Err(format!("exports {found}; {INTERFACE} is spoken here"));
        }
        Some(_) => {}
    }
    let unknown: Vec<&str> = imports
        .iter()
        .copied()
        .filter(|name| !KNOWN_IMPORTS.iter().any(|known| name.starts_with(known)))
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "imports what no plugin is given: [{}]",
            unknown.join(", ")
        )),
    }
}
