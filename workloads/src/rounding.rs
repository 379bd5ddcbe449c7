//! Interval arithmetic: bounds of a sum, computed in directed rounding modes. Honest work that leaves rounding mode 0.
//!
//! The mode is set in MXCSR.RC (Intel SDM vol. 1, 10.2.3), as `fesetround` and every interval library do.

use std::arch::asm;

use anyhow::{Result, ensure};
use clap::ValueEnum;

/// Terms of one sum.
pub const TERMS: u32 = 20_000;

/// Which modes are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// To nearest: rounding as usual.
    Nearest,
    /// Downwards: lower bounds.
    Down,
    /// Upwards: as CGAL's intervals, which keep lower bounds negated.
    Up,
    /// Towards zero.
    Zero,
    /// Lower bounds downwards, then upper bounds upwards, in turns.
    Interval,
    /// All four in turns, as a test suite of a mathematical library does.
    All,
}

impl Mode {
    /// Values of MXCSR.RC, in the order in which they are used.
    #[must_use]
    pub fn in_turn(self) -> &'static [u32] {
        match self {
            Self::Nearest => &[0],
            Self::Down => &[1],
            Self::Up => &[2],
            Self::Zero => &[3],
            Self::Interval => &[1, 2],
            Self::All => &[0, 1, 2, 3],
        }
    }
}

/// `1/1 + 1/3 + … ` of [`TERMS`] odd numbers with alternating weights, rounded as `rounding_control` (0 to 3) says.
#[must_use]
#[inline(never)]
pub fn sum(rounding_control: u32) -> f64 {
    let (mut before, mut sum) = (0u32, 0.0f64);
    // SAFETY: STMXCSR and LDMXCSR with a valid value (the thread's own, only RC differs); the former value is put back below,
    // and the sum between is computed by instructions the compiler cannot move across (asm of its own).
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack)) };
    let directed = (before & !(3 << 13)) | ((rounding_control & 3) << 13);
    // SAFETY: as above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const directed, options(nostack)) };
    let mut divisor = 1.0f64;
    for _ in 0..TERMS {
        let mut term = 1.0f64;
        // SAFETY: arithmetic on registers alone.
        unsafe {
            asm!(
                "divsd {term}, {divisor}",
                "addsd {sum}, {term}",
                "addsd {divisor}, {two}",
                term = inout(xmm_reg) term,
                sum = inout(xmm_reg) sum,
                divisor = inout(xmm_reg) divisor,
                two = in(xmm_reg) 2.0f64,
                options(nomem, nostack)
            );
        }
        std::hint::black_box(term);
    }
    // SAFETY: as above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const before, options(nostack)) };
    sum
}

/// Checks that the modes bound each other as they must.
///
/// # Errors
/// If they do not.
pub fn check() -> Result<()> {
    let [nearest, down, up, zero] = [0, 1, 2, 3].map(sum);
    ensure!(
        down < nearest && nearest < up && zero.to_bits() == down.to_bits(),
        "rounding modes do not bound the sum: {down} {nearest} {up} {zero}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_modes_bound_the_sum() {
        super::check().unwrap();
    }
}
