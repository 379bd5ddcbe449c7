//! A real KVM guest as small as can be: one vCPU in real mode, without firmware or kernel.
//!
//! Its program, at 0x1000: say so on port 0x10, then either jump in place for ever, or halt (or write a register of AMD's
//! prefetcher) and write to port 0x11 in turn. It uses no vector register: where KVM emulates real mode instead of running it, such instructions may do nothing.
//!
//! For each line on its input it says what KVM counted of its vCPU ([`STATS`]), and the writes to port 0x11.

use std::{
    convert::Infallible,
    io::{BufRead as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::stats::Stats;

const MEMORY_BYTES: usize = 0x10000;
const PROGRAM_AT: usize = 0x1000;
/// Intel SDM vol. 2: `out 0x10, al`; `jmp` to itself.
const SPINNING: [u8; 4] = [0xe6, 0x10, 0xeb, 0xfe];
/// The same; `out 0x10, al`; `hlt`; `out 0x11, al`; `jmp` to the `hlt`.
const HALTING: [u8; 7] = [0xe6, 0x10, 0xf4, 0xe6, 0x11, 0xeb, 0xfb];
/// `out 0x10, al`; then each of EAX, ECX, EDX, EBX, EBP, ESI, EDI times and plus a constant (`imul`, `add`); `jmp` to the first of these.
const MIXING: [u8; 102] = mixing();
/// `out 0x10, al`; `mov ecx, 0xc0011022`; `xor eax, eax`; `xor edx, edx`; `wrmsr`; `out 0x11, al`; `jmp` to the `wrmsr`.
const TUNING: [u8; 20] = [
    0xe6, 0x10, 0x66, 0xb9, 0x22, 0x10, 0x01, 0xc0, 0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30,
    0xe6, 0x11, 0xeb, 0xfa,
];
const fn mixing() -> [u8; 102] {
    // As in the registers' encoding, without ESP.
    const REGISTERS: [u8; 7] = [0, 1, 2, 3, 5, 6, 7];
    // Multipliers and increments of full-period generators (Knuth, The Art of Computer Programming vol. 2, 3.2.1).
    const BY: [u8; 4] = 1_664_525_u32.to_le_bytes();
    const PLUS: [u8; 4] = 1_013_904_223_u32.to_le_bytes();
    let mut program = [0; 102];
    (program[0], program[1]) = (0xe6, 0x10);
    let mut number = 0;
    while number < REGISTERS.len() {
        let (at, register) = (2 + 14 * number, REGISTERS[number]);
        (program[at], program[at + 1], program[at + 2]) =
            (0x66, 0x69, 0xc0 | register << 3 | register);
        (program[at + 7], program[at + 8], program[at + 9]) = (0x66, 0x81, 0xc0 | register);
        let mut byte = 0;
        while byte < 4 {
            program[at + 3 + byte] = BY[byte];
            // Another sequence in each register.
            program[at + 10 + byte] = PLUS[byte].wrapping_add(2 * REGISTERS[number]);
            byte += 1;
        }
        number += 1;
    }
    (program[100], program[101]) = (0xeb, (-100_i8).cast_unsigned());
    program
}

/// The counters that are said, in this order, as KVM names them.
pub const STATS: [&str; 6] = [
    "exits",
    "halt_exits",
    "io_exits",
    "irq_exits",
    "halt_poll_success_ns",
    "halt_poll_fail_ns",
];
/// How long the guest may take to say that it runs.
const START: Duration = Duration::from_secs(20);

/// What the guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Jumps in place.
    Spinning,
    /// Halts and writes to a port in turn; the VMM goes on at once.
    Halting,
    /// Computes in general registers as a hash does.
    Mixing,
    /// Writes a register of the prefetcher, and to a port, in turn; KVM knows that register and ignores it.
    Tuning,
}

/// Runs the guest, and says `ready` once it runs.
///
/// # Errors
/// If KVM is not there or refuses something.
pub fn run(program: Program) -> Result<Infallible, kvm_ioctls::Error> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let memory = memory(match program {
        Program::Spinning => &SPINNING,
        Program::Halting => &HALTING,
        Program::Mixing => &MIXING,
        Program::Tuning => &TUNING,
    });
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the memory is leaked, so it outlives the VM; nothing else touches it once the guest runs.
    unsafe { vm.set_user_memory_region(region) }?;
    let mut vcpu = vm.create_vcpu(0)?;
    set_registers(&vcpu)?;
    let stats = Stats::of(&vcpu);
    let written = Arc::new(AtomicU64::new(0));
    let written_so_far = Arc::clone(&written);
    let (started, has_started) = std::sync::mpsc::channel();
    thread::spawn(move || {
        if has_started.recv_timeout(START).is_err() {
            println!("no guest: KVM took it but it does not run");
            std::process::exit(1);
        }
    });
    thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            let said = stats.as_ref().map_or_else(ToString::to_string, |stats| {
                let of = |name| stats.get(name).map_or("none".to_owned(), |n| n.to_string());
                STATS.map(of).join(" ")
            });
            println!("{said} {}", written_so_far.load(Ordering::SeqCst));
        }
    });
    // A vCPU thread that is not the process's first one, as with every VMM.
    let outcome = thread::Builder::new()
        .name("CPU 0/KVM".to_owned())
        .spawn(move || {
            loop {
                match vcpu.run() {
                    Ok(VcpuExit::IoOut(0x10, _)) => {
                        println!("ready");
                        let _ = std::io::stdout().flush();
                        let _ = started.send(());
                    }
                    Ok(VcpuExit::IoOut(0x11, _)) => {
                        written.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(_) => {}
                    Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
                    Err(error) => return error,
                }
            }
        })
        .map(thread::JoinHandle::join);
    match outcome {
        Ok(Ok(error)) => Err(error),
        _ => Err(kvm_ioctls::Error::new(
            rustix::io::Errno::AGAIN.raw_os_error(),
        )),
    }
}

/// Page-aligned memory with the program, never freed.
fn memory(program: &[u8]) -> &'static mut [u8] {
    let memory = vec![0u8; MEMORY_BYTES + 0x1000].leak();
    let skip = memory.as_ptr().align_offset(0x1000);
    let memory = &mut memory[skip..skip + MEMORY_BYTES];
    memory[PROGRAM_AT..PROGRAM_AT + program.len()].copy_from_slice(program);
    memory
}

fn set_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    special.cs.base = 0;
    special.cs.selector = 0;
    vcpu.set_sregs(&special)?;
    let mut general = vcpu.get_regs()?;
    general.rip = PROGRAM_AT as u64;
    general.rflags = 2;
    vcpu.set_regs(&general)
}
