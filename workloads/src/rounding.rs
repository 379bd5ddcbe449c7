//! Interval arithmetic: bounds of a sum, computed in directed rounding modes; and stochastic arithmetic, where every operation is rounded by
//! chance. Honest work that leaves rounding mode 0.
//!
//! Stochastic arithmetic estimates rounding errors: a computation runs several times with each operation rounded up or down at random, and
//! the digits in which the results agree are the significant ones (CESTAC: J. Vignes, Mathematics and Computers in Simulation 35, 1993;
//! CADNA is the library that does it, with three runs).
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
    /// Every operation upwards or downwards at random, as CADNA does.
    Stochastic,
    /// Every operation in one of all four modes at random.
    StochasticAll,
}

impl Mode {
    /// The modes that a sum is computed in by chance; none: it is computed in one.
    #[must_use]
    pub fn by_chance(self) -> Option<Chance> {
        match self {
            Self::Stochastic => Some(Chance::UpOrDown),
            Self::StochasticAll => Some(Chance::Any),
            Self::Nearest | Self::Down | Self::Up | Self::Zero | Self::Interval | Self::All => None,
        }
    }

    /// Values of MXCSR.RC, in the order in which they are used; of a mode by chance, those that it chooses from.
    #[must_use]
    pub fn in_turn(self) -> &'static [u32] {
        match self {
            Self::Nearest => &[0],
            Self::Down => &[1],
            Self::Up => &[2],
            Self::Zero => &[3],
            Self::Interval | Self::Stochastic => &[1, 2],
            Self::All | Self::StochasticAll => &[0, 1, 2, 3],
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

/// What stochastic arithmetic chooses from, for every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chance {
    /// Up or down.
    UpOrDown,
    /// All four.
    Any,
}

/// Runs of one computation whose results are compared: as many as CADNA's.
pub const RUNS: usize = 3;

/// The sum of [`sum`], [`RUNS`] times, with every operation rounded by chance. `state` is that of a pseudo-random generator, not 0.
#[must_use]
pub fn stochastic_sums(chance: Chance, state: &mut u64) -> [f64; RUNS] {
    let mut sums = [0.0; RUNS];
    let mut divisor = 1.0f64;
    for _ in 0..TERMS {
        let modes = std::array::from_fn(|_| chance.next(state));
        add_term(&mut sums, divisor, modes);
        divisor += 2.0;
    }
    sums
}

impl Chance {
    /// The next MXCSR.RC: by xorshift64 (G. Marsaglia, Journal of Statistical Software 8, 2003), whose upper bits are the better ones.
    fn next(self, state: &mut u64) -> u32 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        // Two bits.
        let bits = u32::try_from(*state >> 62).unwrap_or(0);
        match self {
            Self::UpOrDown => 1 + (bits & 1),
            Self::Any => bits,
        }
    }
}

/// Adds 1 / `divisor` to each sum, every division and addition rounded as its mode (0 to 3) says. All runs take this step before any takes
/// the next, as values of CADNA's types carry their three results with them. The mode is as before afterwards.
#[inline]
fn add_term([a, b, c]: &mut [f64; RUNS], divisor: f64, modes: [u32; 2 * RUNS]) {
    let mut before = 0u32;
    // SAFETY: STMXCSR stores to 4 writable bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack)) };
    let controls = modes.map(|mode| (before & !(3 << 13)) | (mode << 13));
    // SAFETY: LDMXCSR with valid values (the thread's own, only RC differs) from an array of six words; the former value is put back in the
    // same block, so that no instruction of the compiler's runs in between.
    unsafe {
        asm!(
            "ldmxcsr [{to}]", "divsd {x}, {by}", "ldmxcsr [{to} + 4]", "addsd {a}, {x}",
            "ldmxcsr [{to} + 8]", "divsd {y}, {by}", "ldmxcsr [{to} + 12]", "addsd {b}, {y}",
            "ldmxcsr [{to} + 16]", "divsd {z}, {by}", "ldmxcsr [{to} + 20]", "addsd {c}, {z}",
            "ldmxcsr [{before}]",
            to = in(reg) controls.as_ptr(), before = in(reg) &raw const before, by = in(xmm_reg) divisor,
            x = inout(xmm_reg) 1.0f64 => _, y = inout(xmm_reg) 1.0f64 => _, z = inout(xmm_reg) 1.0f64 => _,
            a = inout(xmm_reg) *a, b = inout(xmm_reg) *b, c = inout(xmm_reg) *c,
            options(nostack)
        );
    }
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
    let mut state = 1;
    for chance in [Chance::UpOrDown, Chance::Any] {
        let sums = stochastic_sums(chance, &mut state);
        ensure!(
            sums.iter().all(|sum| (down..=up).contains(sum)),
            "sums rounded by chance are not within their bounds: {down} {sums:?} {up}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_bound_the_sum() {
        check().unwrap();
    }

    #[test]
    fn runs_rounded_by_chance_differ_in_their_last_digits() {
        for chance in [Chance::UpOrDown, Chance::Any] {
            let [a, b, c] = stochastic_sums(chance, &mut 7);
            assert!(a != b && b != c && a != c, "{chance:?}: {a} {b} {c}");
            assert!((a - b).abs() < 1e-9 && (b - c).abs() < 1e-9);
        }
    }

    #[test]
    fn chance_takes_every_mode_it_may_and_no_other() {
        for (chance, expected) in [
            (Chance::UpOrDown, [false, true, true, false]),
            (Chance::Any, [true; 4]),
        ] {
            let (mut seen, mut state) = ([false; 4], 1);
            for _ in 0..1_000 {
                seen[chance.next(&mut state) as usize] = true;
            }
            assert_eq!(seen, expected, "{chance:?}");
        }
    }

    #[test]
    fn every_operation_is_rounded_as_it_is_told() {
        let third = |divide, add| {
            let mut sums = [0.0; RUNS];
            add_term(&mut sums, 3.0, [divide, add, divide, add, divide, add]);
            assert_eq!(sums, [sums[0]; RUNS]);
            sums[0].to_bits()
        };
        assert_eq!([third(0, 0), third(1, 0), third(3, 0)], [third(1, 1); 3]);
        assert_eq!(third(2, 0), third(1, 0) + 1);
        let mut sums = [1e20; RUNS];
        add_term(&mut sums, 1.0, [0, 1, 0, 0, 0, 2]);
        assert_eq!(
            sums.map(f64::to_bits),
            [1e20, 1e20, 1e20f64.next_up()].map(f64::to_bits)
        );
        let mut sums = [-1e20, 1e20, 1e20];
        add_term(&mut sums, 1.0, [0, 3, 0, 3, 0, 2]);
        assert_eq!(sums[0].to_bits(), (-1e20f64).next_up().to_bits());
    }
}
