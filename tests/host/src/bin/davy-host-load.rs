//! A load whose use of CPU and registers is known. `davy-host-load KIND [ARGUMENTS]`; says `ready` when its
//! work begins and goes on until it is ended, unless said otherwise.
//!
//! | kind | what it does |
//! |---|---|
//! | `hold CONTENT MODE [once]` | keeps CONTENT (see `pattern.rs`) in its registers in rounding mode MODE (0 to 3, or `all`), new every millisecond or so; `once`: never new again |
//! | `general CONTENT` | keeps CONTENT in its general registers, new every millisecond or so |
//! | `secret-general HEX` | keeps one known 8-byte value in twelve general registers, changing only a counter in one of them |
//! | `secret HEX` | keeps one known 16-byte value in all registers, changing only a counter in one of them |
//! | `churn THREADS SECONDS` | waits for the end of its input; then for that long THREADS threads compute, sleep, yield and start and end further threads; says `done` and waits, with THREADS threads alive |
//! | `zombies COUNT` | waits for the end of its input; then starts COUNT processes that compute and end, and never asks how; says `done` and waits |
//! | `exec` | waits for the end of its input; then a thread that is not the first one becomes `hold doubles 2` |
//! | `guest [halting\|mixing\|tuning]` | runs a KVM guest of one vCPU, see `guest.rs`; says why instead of `ready` where none can run |
//! | `stop` | sleeps |
//! | `load` | loads the kernel half and says `loaded`, or the error |

use std::{
    io::Read,
    os::unix::process::CommandExt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use davy_agent::kernel::{Kernel, KernelOptions};
use davy_host_tests::{
    guest::Program,
    pattern::{Registers, Words, content, general_content, hold, hold_general, mxcsr},
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["hold", kind, mode] => hold_content(kind, mode, false),
        ["hold", kind, mode, "once"] => hold_content(kind, mode, true),
        ["general", kind] => general(kind),
        ["secret-general", hex] => secret_general(hex),
        ["secret", hex] => secret(hex),
        ["churn", threads, seconds] => churn(threads, seconds),
        ["zombies", count] => zombies(count),
        ["spin", length_ms] => {
            let length_ms = length_ms.parse().unwrap_or(10);
            work(length_ms, Instant::now() + Duration::from_secs(1));
            ExitCode::SUCCESS
        }
        ["exec"] => exec(),
        ["guest"] => guest(Program::Spinning),
        ["guest", "mixing"] => guest(Program::Mixing),
        ["guest", "halting"] => guest(Program::Halting),
        ["guest", "tuning"] => guest(Program::Tuning),
        ["stop"] => {
            println!("ready");
            park()
        }
        ["load"] => match Kernel::load(&KernelOptions::default()) {
            Ok(_) => {
                println!("loaded");
                ExitCode::SUCCESS
            }
            Err(error) => {
                println!("{error}");
                ExitCode::FAILURE
            }
        },
        _ => {
            eprintln!("usage: see the head of davy-host-load.rs");
            ExitCode::FAILURE
        }
    }
}

/// About a millisecond.
const SPINS: u64 = 2_000_000;

fn guest(program: Program) -> ExitCode {
    match davy_host_tests::guest::run(program) {
        Ok(never) => match never {},
        Err(error) => {
            println!("no guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn hold_content(kind: &str, mode: &str, once: bool) -> ExitCode {
    let mut words = Words(u64::from(std::process::id()));
    let Some(mut registers) = content(kind, &mut words) else {
        eprintln!("there is no content called {kind}");
        return ExitCode::FAILURE;
    };
    let mut turn = 0;
    println!("ready");
    if once {
        hold(&registers, mxcsr(mode.parse().unwrap_or(0)), u64::MAX);
    }
    loop {
        let mode = mode.parse().unwrap_or(turn);
        turn = (turn + 1) % 4;
        hold(&registers, mxcsr(mode), SPINS);
        if let Some(next) = content(kind, &mut words) {
            registers = next;
        }
    }
}

fn general(kind: &str) -> ExitCode {
    let mut words = Words(u64::from(std::process::id()));
    println!("ready");
    while let Some(registers) = general_content(kind, &mut words) {
        hold_general(&registers, SPINS);
    }
    eprintln!("there is no content called {kind}");
    ExitCode::FAILURE
}

fn secret_general(hex: &str) -> ExitCode {
    let Ok(value) = u64::from_str_radix(hex, 16) else {
        eprintln!("the secret must be hexadecimal");
        return ExitCode::FAILURE;
    };
    let mut registers = [value; 12];
    println!("ready");
    loop {
        hold_general(&registers, SPINS);
        registers[11] = registers[11].wrapping_add(1);
    }
}

fn secret(hex: &str) -> ExitCode {
    let Ok(value) = u128::from_str_radix(hex, 16) else {
        eprintln!("the secret must be hexadecimal");
        return ExitCode::FAILURE;
    };
    let mut registers = Registers([0; 32]);
    for pair in registers.0.chunks_mut(2) {
        let low = value & u128::from(u64::MAX);
        pair[0] = u64::try_from(low).unwrap_or(0);
        pair[1] = u64::try_from(value >> 64).unwrap_or(0);
    }
    println!("ready");
    loop {
        hold(&registers, mxcsr(0), SPINS);
        registers.0[31] = registers.0[31].wrapping_add(1);
    }
}

fn churn(threads: &str, seconds: &str) -> ExitCode {
    let (Ok(threads), Ok(seconds)) = (threads.parse::<u64>(), seconds.parse::<u64>()) else {
        eprintln!("churn THREADS SECONDS");
        return ExitCode::FAILURE;
    };
    // Nothing runs before the test has begun to watch.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    println!("ready");
    let end = Instant::now() + Duration::from_secs(seconds);
    let (finished, all_finished) = std::sync::mpsc::channel();
    for number in 0..threads {
        let finished = finished.clone();
        thread::spawn(move || {
            let mut words = Words(number);
            while Instant::now() < end {
                let length_ms = words.next_word() % 40;
                let child = thread::spawn(move || work(length_ms, end));
                work(words.next_word() % 40, end);
                let _ = child.join();
            }
            let _ = finished.send(());
            park()
        });
    }
    for _ in 0..threads {
        let _ = all_finished.recv();
    }
    println!("done");
    park()
}

fn zombies(count: &str) -> ExitCode {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    println!("ready");
    let Ok(program) = std::env::current_exe() else {
        return ExitCode::FAILURE;
    };
    let mut children = Vec::new();
    for number in 0..count.parse::<u64>().unwrap_or(0) {
        let length_ms = (number % 30).to_string();
        match std::process::Command::new(&program)
            .args(["spin", &length_ms])
            .spawn()
        {
            Ok(child) => children.push(child.id()),
            Err(error) => eprintln!("a child could not be started: {error}"),
        }
    }
    let ended = |tgid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{tgid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    };
    while !children.iter().all(ended) {
        thread::sleep(Duration::from_millis(20));
    }
    println!("done");
    park()
}

fn exec() -> ExitCode {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let _ = thread::spawn(|| {
        let program = std::env::current_exe().unwrap_or_default();
        let error = std::process::Command::new(program)
            .args(["hold", "doubles", "2"])
            .exec();
        eprintln!("{error}");
    })
    .join();
    ExitCode::FAILURE
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Computes for some milliseconds, sleeps a little, yields, until `end`.
fn work(length_ms: u64, end: Instant) {
    let stop = (Instant::now() + Duration::from_millis(length_ms)).min(end);
    let mut words = Words(length_ms);
    while Instant::now() < stop {
        for _ in 0..20_000 {
            std::hint::black_box(words.next_word());
        }
        if words.next_word().is_multiple_of(3) {
            thread::yield_now();
        }
    }
    thread::sleep(Duration::from_millis(1));
}
