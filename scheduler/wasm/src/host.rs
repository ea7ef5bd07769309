//! [`Host`]: what an instance stands on: its bounds, its lines in the log, and the random numbers it is given.

use wasmtime::ResourceLimiter;

use crate::bindings::{Level, Log};

/// How many lines of a call are kept in the log.
pub(crate) const MAX_LOG_LINES: u32 = 16;
/// How many bytes of a text of a component are kept.
pub(crate) const MAX_TEXT_BYTES: usize = 1024;
/// How many elements its tables may have together; each takes 8 or 16 bytes.
const MAX_TABLE_ELEMENTS: usize = 1 << 20;
/// More random bytes are not given at once.
const MAX_RANDOM_BYTES: u64 = 64 << 10;

/// What does not fit the bounds of a component's memory.
#[derive(Debug, thiserror::Error)]
#[error("memory of {wanted} bytes")]
pub(crate) struct TooMuchMemory {
    pub(crate) wanted: usize,
}

/// What an instance may have.
pub(crate) struct Bounds {
    memory_limit: usize,
    memory: usize,
    table_elements: usize,
}

impl ResourceLimiter for Bounds {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = (self.memory - current).saturating_add(desired);
        if wanted > self.memory_limit {
            return Err(TooMuchMemory { wanted }.into());
        }
        self.memory = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = (self.table_elements - current).saturating_add(desired);
        if wanted > MAX_TABLE_ELEMENTS {
            return Ok(false);
        }
        self.table_elements = wanted;
        Ok(true)
    }
}

/// What an instance stands on.
pub(crate) struct Host {
    plugin: &'static str,
    pub(crate) bounds: Bounds,
    /// Of the call under way.
    pub(crate) lines: u32,
    pub(crate) random: Random,
}

impl Host {
    pub(crate) fn new(plugin: &'static str, memory_limit: usize) -> Self {
        Host {
            plugin,
            bounds: Bounds {
                memory_limit,
                memory: 0,
                table_elements: 0,
            },
            lines: 0,
            random: Random::default(),
        }
    }

    /// A line of the component in the log.
    pub(crate) fn log(&mut self, level: Level, message: &str) {
        self.lines = self.lines.saturating_add(1);
        let (plugin, message) = match self.lines {
            lines if lines <= MAX_LOG_LINES => (self.plugin, shortened(message)),
            lines if lines == MAX_LOG_LINES + 1 => (self.plugin, "(further lines are left out)"),
            _ => return,
        };
        match level {
            Level::Debug => tracing::debug!(plugin, "{message}"),
            Level::Info => tracing::info!(plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin, "{message}"),
            Level::Error => tracing::error!(plugin, "{message}"),
        }
    }
}

impl Log for Host {
    fn write(&mut self, level: Level, message: String) {
        self.log(level, &message);
    }
}

impl crate::bindings::gantry::scheduler::types::Host for Host {}

/// The first bytes of a text that a component may have made of any length.
pub(crate) fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]
}

/// Numbers that look random and are the same in every instance (SplitMix64).
#[derive(Default)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn bytes(&mut self, length: u64) -> wasmtime::Result<Vec<u8>> {
        if length > MAX_RANDOM_BYTES {
            wasmtime::bail!("asked for {length} random bytes, more than {MAX_RANDOM_BYTES}");
        }
        let words = length.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(bytes)
    }
}
