//! Registers with a known content: loads MXCSR and all sixteen vector registers and spins, so that a switch
//! nearly always finds exactly that.

use std::arch::asm;

/// What is put into the registers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Registers(pub [u64; 32]);

/// MXCSR after reset, with another rounding mode.
#[must_use]
pub const fn mxcsr(mode: u32) -> u32 {
    0x1f80 | (mode & 3) << 13
}

/// Puts `registers` and `mxcsr` in, and counts down `spins` with general registers alone.
pub fn hold(registers: &Registers, mxcsr: u32, spins: u64) {
    let before = 0x1f80_u32;
    // SAFETY: reads 256 bytes behind the reference; all vector registers are declared as clobbered, and MXCSR
    // is put back to its reset value, which is Rust's, before the block ends.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            "movdqa xmm0, [{from}]",
            "movdqa xmm1, [{from} + 16]",
            "movdqa xmm2, [{from} + 32]",
            "movdqa xmm3, [{from} + 48]",
            "movdqa xmm4, [{from} + 64]",
            "movdqa xmm5, [{from} + 80]",
            "movdqa xmm6, [{from} + 96]",
            "movdqa xmm7, [{from} + 112]",
            "movdqa xmm8, [{from} + 128]",
            "movdqa xmm9, [{from} + 144]",
            "movdqa xmm10, [{from} + 160]",
            "movdqa xmm11, [{from} + 176]",
            "movdqa xmm12, [{from} + 192]",
            "movdqa xmm13, [{from} + 208]",
            "movdqa xmm14, [{from} + 224]",
            "movdqa xmm15, [{from} + 240]",
            "2:",
            "dec {spins}",
            "jnz 2b",
            "ldmxcsr [{before}]",
            mxcsr = in(reg) &raw const mxcsr,
            before = in(reg) &raw const before,
            from = in(reg) registers.0.as_ptr(),
            spins = inout(reg) spins.max(1) => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack),
        );
    }
}

/// What is put into twelve general registers.
pub type General = [u64; 12];

/// Puts `registers` into all general registers but RCX, in which it counts down `spins`, and RBX, RBP and RSP, which inline
/// assembly may not have.
pub fn hold_general(registers: &General, spins: u64) {
    // SAFETY: reads 96 bytes behind the reference; every register written is declared.
    unsafe {
        asm!(
            "mov rax, [rdi]",
            "mov rdx, [rdi + 8]",
            "mov rsi, [rdi + 16]",
            "mov r8, [rdi + 24]",
            "mov r9, [rdi + 32]",
            "mov r10, [rdi + 40]",
            "mov r11, [rdi + 48]",
            "mov r12, [rdi + 56]",
            "mov r13, [rdi + 64]",
            "mov r14, [rdi + 72]",
            "mov r15, [rdi + 80]",
            "mov rdi, [rdi + 88]",
            "2:",
            "dec rcx",
            "jnz 2b",
            inout("rdi") registers.as_ptr() => _,
            inout("rcx") spins.max(1) => _,
            out("rax") _, out("rdx") _, out("rsi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            options(nostack),
        );
    }
}

/// Contents of general registers by name: what a kind of program keeps there.
#[must_use]
pub fn general_content(kind: &str, words: &mut Words) -> Option<General> {
    let mut registers = [0; 12];
    for (number, register) in registers.iter_mut().enumerate() {
        *register = match kind {
            "random" => words.next_word(),
            "random32" => words.next_word() >> 32,
            "pointers" => 0x7f12_3400_0000 | (words.next_word() & 0xff_fff8),
            "kernel-pointers" => 0xffff_8881_0000_0000 | (words.next_word() & 0xfff_fff8),
            "integers" => words.next_word() % 100_000,
            "negative" => (words.next_word() % 100_000).wrapping_neg(),
            "lengths" => words.next_word() >> (44 + number),
            "text" => bytes(8, |_| 0x61 + words.next_word() % 26),
            "doubles" => (words.next_unit() * 200.0 - 100.0).round().to_bits(),
            _ => return None,
        };
    }
    // Whatever a program computes, a hash key or the bits of a compressor make some of its registers random.
    if kind != "random" && kind != "random32" {
        registers[0] = words.next_word();
        registers[1] = words.next_word() >> 32;
    }
    Some(registers)
}

/// A small generator of uniformly distributed words (splitmix64; Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub struct Words(pub u64);

impl Words {
    /// The next word.
    pub fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number in 0.0..1.0 with a full mantissa.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
    pub fn next_unit(&mut self) -> f64 {
        (self.next_word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in -10.0..10.0 with a full mantissa.
    #[expect(clippy::cast_possible_truncation, reason = "a float is wanted")]
    pub fn next_float(&mut self) -> f32 {
        (self.next_unit() * 20.0 - 10.0) as f32
    }
}

/// Contents by name: what a kind of program keeps in its vector registers.
#[must_use]
pub fn content(kind: &str, words: &mut Words) -> Option<Registers> {
    let mut registers = [0; 32];
    for (number, half) in registers.iter_mut().enumerate() {
        *half = match kind {
            "random" => words.next_word(),
            "doubles" => (words.next_unit() * 200.0 - 100.0).to_bits(),
            "floats" => pair(|| words.next_float().to_bits()),
            "integers" => words.next_word() & 0x0000_ffff_0000_0fff,
            "residuals" => bytes(4, |_| {
                let small = (words.next_word() % 31) as i16 - 15;
                u64::from(small.cast_unsigned())
            }),
            "pixels" => {
                let base = words.next_word() % 200;
                bytes(8, |_| base + words.next_word() % 9)
            }
            "text" => bytes(8, |_| 0x61 + words.next_word() % 26),
            "counter" if number == 0 => words.next_word(),
            "counter" => 0,
            _ => return None,
        };
    }
    Some(Registers(registers))
}

fn pair(mut half: impl FnMut() -> u32) -> u64 {
    u64::from(half()) | u64::from(half()) << 32
}

fn bytes(lanes: u32, mut lane: impl FnMut(u32) -> u64) -> u64 {
    let width = 64 / lanes;
    (0..lanes).fold(0, |word, number| word | (lane(number) << (number * width)))
}
