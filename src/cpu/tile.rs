//! The tile unit of a thread and its configurations. These lie in static memory: compilers have dropped configurations
//! that were built on the stack, and a load from a constant address cannot see a half-written one.

use std::arch::asm;

use super::Amx;

/// Rows of a full tile register.
pub const TILE_ROWS: usize = 16;
/// Bytes per row of a full tile register.
pub const TILE_BYTES: usize = 64;

/// The 64 bytes LDTILECFG reads (Intel SDM, "Intel AMX instruction set reference").
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Registers for one C tile of 32x32 results: tmm0-1 and tmm2-3 hold the results of the upper and lower 16 rows of
    /// activations, tmm4 and tmm5 those rows, tmm6-7 two panels of 16 columns.
    ///
    /// `rows`: rows of activations, 1 to 32. `depth`: bytes along K that one instruction takes, 16, 32 or 64.
    const fn c_tile(rows: usize, depth: usize) -> Self {
        let upper = if rows < TILE_ROWS { rows } else { TILE_ROWS };
        let lower = rows - upper;
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
        let tiles = [upper, upper, lower, lower, upper, lower, depth / 4, depth / 4];
        let mut i = 0;
        while i < 8 {
            // A register without rows stays unconfigured; an instruction that touches it faults.
            if tiles[i] > 0 {
                config.rows[i] = tiles[i] as u8;
                config.bytes_per_row[i] = if i == 4 || i == 5 { depth as u16 } else { TILE_BYTES as u16 };
            }
            i += 1;
        }
        config
    }
}

/// Configurations for 1 to 32 rows; entry 0 is not used.
const fn table(depth: usize) -> [TileConfig; 33] {
    let mut configs = [TileConfig::c_tile(1, depth); 33];
    let mut rows = 1;
    while rows <= 32 {
        configs[rows] = TileConfig::c_tile(rows, depth);
        rows += 1;
    }
    configs
}

static FULL: TileConfig = TileConfig::c_tile(32, TILE_BYTES);
static DEPTH_16: [TileConfig; 33] = table(16);
static DEPTH_32: [TileConfig; 33] = table(32);

/// The tile unit of the current thread, configured from [`TileUnit::enter`] until this is dropped. It is released then,
/// for live tiles make context switches slower and keep cores from idling deeply.
pub struct TileUnit {
    depth: usize,
    rows: usize,
}

impl TileUnit {
    /// Takes the tile unit of this thread for instructions of depth 16 or 32 (bytes along K). A configuration that
    /// another library left on the thread is replaced.
    pub fn enter(_proof: Amx, depth: usize) -> Self {
        assert!(depth == 16 || depth == 32, "tile depth {depth}");
        let mut tiles = Self { depth, rows: 0 };
        tiles.set_rows(32);
        tiles
    }

    /// Takes the tile unit of this thread with all eight registers at their full size.
    pub fn enter_full(_proof: Amx) -> Self {
        // SAFETY: the proof says that tile instructions may run; the configuration is static and valid for palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &FULL, options(nostack, preserves_flags, readonly)) };
        Self { depth: TILE_BYTES, rows: 32 }
    }

    /// Configures for C tiles of `rows` rows, 1 to 32.
    #[inline]
    pub fn set_rows(&mut self, rows: usize) {
        if rows == self.rows {
            return;
        }
        let config = if self.depth == 16 { &DEPTH_16[rows] } else { &DEPTH_32[rows] };
        // SAFETY: `enter` had the proof that tile instructions may run; the configuration is static and valid for
        // palette 1. Not `nomem`: the instruction reads memory.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, preserves_flags, readonly)) };
        self.rows = rows;
    }
}

impl Drop for TileUnit {
    fn drop(&mut self) {
        // SAFETY: `enter` had the proof that tile instructions may run; this one touches tile state only.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_64_bytes_of_the_manual() {
        assert_eq!(size_of::<TileConfig>(), 64);
        let config = TileConfig::c_tile(20, 32);
        assert_eq!(config.palette, 1);
        assert_eq!(config.rows[..8], [16, 16, 4, 4, 16, 4, 8, 8]);
        assert_eq!(config.bytes_per_row[..8], [64, 64, 64, 64, 32, 32, 64, 64]);
    }

    #[test]
    fn registers_without_rows_are_left_unconfigured() {
        let config = TileConfig::c_tile(16, 16);
        assert_eq!(config.rows[..8], [16, 16, 0, 0, 16, 0, 4, 4]);
        assert_eq!(config.bytes_per_row[2], 0);
    }
}
