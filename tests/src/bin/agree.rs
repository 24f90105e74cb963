//! `cargo xtask agree`, see [`tfo_tests::agree`].

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use tfo_common::{class::Class, verdict::Verdict};
use tfo_tests::agree::{Options, run};

/// Compares the program in the kernel with the same code on the host, on random and spoilt frames.
#[derive(Parser)]
#[command(name = "cargo xtask agree")]
struct Args {
    /// Number of frames
    #[arg(long, default_value_t = 10_000_000)]
    frames: u64,
    /// Repeats the frames of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after this many seconds, even if frames are left
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn main() -> ExitCode {
    let Args { frames, seed, seconds } = Args::parse();
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let start = Instant::now();
    let time = seconds.map(Duration::from_secs);
    let seen = match run(&Options { frames, seed, time }) {
        Ok(seen) => seen,
        Err(disagreement) => {
            println!("{disagreement}\nonce more: cargo xtask agree --seed {seed} --frames {frames}");
            return ExitCode::FAILURE;
        }
    };
    for class in Class::ALL {
        let rewritten = seen.counters.verdict(*class, Verdict::Rewrite);
        println!("{class:<18}{:>10}  {rewritten} rewritten", seen.counters.class(*class).packets);
    }
    println!("{:<18}{:>10}", "malformed", seen.counters.malformed_total());
    println!("{:<18}{:>10}", "unsupported", seen.counters.unsupported_total());
    println!(
        "{} frames in {:.0} s, seed {seed}: 0 mismatches; the bytes of {} compared too; {} more were refused by the interface",
        seen.frames,
        start.elapsed().as_secs_f64(),
        seen.compared,
        seen.refused
    );
    let missing = seen.missing();
    if missing.is_empty() {
        println!("every class, reason and key was seen, with and without data");
        ExitCode::SUCCESS
    } else {
        println!("no frame was seen of: {}", missing.join(", "));
        ExitCode::FAILURE
    }
}
