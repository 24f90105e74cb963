//! `cargo xtask fuzz`: gives each fuzz target its share of the time, beginning with its corpus and the case table.
//!
//! libFuzzer is linked into the targets, so no tool has to be installed. [`COVERAGE`] has the flags that `cargo fuzz`
//! would pass, without those of a sanitizer: only a nightly compiler takes these, and safe code does not need them. New
//! inputs stay under `target/fuzz`; `--minimize` chooses those that belong in `tests/corpus`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    setup,
    workspace::{cargo, command, describe, is_installed, output, root, run, step, target_dir},
};

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Time of the run, shared among the targets
    #[arg(long = "for", value_name = "SECONDS", default_value = "300")]
    seconds: u64,
    /// Put the smallest set of inputs with the same coverage into tests/corpus afterwards; files there that were named
    /// by hand stay
    #[arg(long)]
    minimize: bool,
    /// Run this target only; may be repeated
    targets: Vec<String>,
}

/// Compiler flags that give libFuzzer the coverage of an input, and make an overflow a panic.
const COVERAGE: [&str; 10] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
];

/// Runs the targets. Prints what each found, and how to repeat it; a finding makes the exit status a failure.
pub(crate) fn fuzz(args: &Args) -> Result<ExitCode> {
    let targets = targets(&args.targets)?;
    let folder = target_dir()?.join("fuzz");
    setup::ensure()?;
    let binaries = build(&folder)?;
    let seeds = folder.join("seeds");
    run(cargo().args(["run", "--quiet", "--package", "tfo-tests", "--example", "seeds", "--"]).arg(&seeds))?;

    let share = Duration::from_secs(args.seconds) / targets.len() as u32;
    let mut failed = 0;
    for name in targets {
        let target = Target {
            binary: binaries.join(&name),
            seeds: seeds.join(&name),
            found: folder.join("corpus").join(&name),
            crashes: folder.join("crashes").join(&name),
            corpus: root().join("tests/corpus").join(&name),
            name,
        };
        let is_fine = target.run(share)?;
        failed += u32::from(!is_fine);
        if args.minimize && is_fine {
            target.minimize(&folder.join("minimized"))?;
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the targets that were asked for, or all.
fn targets(asked: &[String]) -> Result<Vec<String>> {
    let folder = root().join("tests/fuzz/fuzz_targets");
    let mut all: Vec<String> =
        files(&folder)?.iter().filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    all.sort();
    if let Some(unknown) = asked.iter().find(|name| !all.contains(name)) {
        bail!("there is no fuzz target {unknown}: there are {}", all.join(", "));
    }
    Ok(if asked.is_empty() { all } else { asked.to_vec() })
}

/// Builds all targets and returns their folder.
fn build(folder: &Path) -> Result<PathBuf> {
    ensure!(
        is_installed("c++"),
        "libFuzzer is compiled from C++, and there is no c++: install one (Debian, Ubuntu: apt-get install g++)"
    );
    step("building the fuzz targets");
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.with_context(|| format!("`rustc -vV` names no host: {version:?}"))?;
    let build = folder.join("build");
    run(cargo()
        // With `--target`, the flags do not hold for build scripts and macros.
        .args(["build", "--package", "tfo-fuzz", "--bins", "--release", "--target", host])
        .arg("--target-dir")
        .arg(&build)
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f")))?;
    Ok(build.join(host).join("release"))
}

struct Target {
    name: String,
    binary: PathBuf,
    /// Folder of inputs from the case table.
    seeds: PathBuf,
    /// Folder of inputs that reached new code.
    found: PathBuf,
    crashes: PathBuf,
    /// Folder of the committed inputs.
    corpus: PathBuf,
}

impl Target {
    /// Runs the target for `time`. Returns whether it found nothing wrong.
    fn run(&self, time: Duration) -> Result<bool> {
        for folder in [&self.found, &self.crashes, &self.corpus] {
            create(folder)?;
        }
        let mut fuzzer = Command::new(&self.binary);
        fuzzer
            .arg(format!("-max_total_time={}", time.as_secs().max(1)))
            .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=2048", "-max_len=1024"])
            .arg(format!("-artifact_prefix={}/", self.crashes.display()))
            .args([&self.found, &self.corpus, &self.seeds]);
        let mut child = fuzzer
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut lines = Vec::new();
        for line in BufReader::new(child.stderr.take().expect("it was just piped")).split(b'\n') {
            lines.push(
                String::from_utf8_lossy(&line.context("cannot read what the fuzzer says")?).into_owned(),
            );
        }
        let status = child.wait().with_context(|| format!("cannot wait for `{}`", describe(&fuzzer)))?;
        println!("{:10} {}", self.name, Stats::read(&lines));
        if status.success() {
            return Ok(true);
        }
        lines.iter().for_each(|line| eprintln!("{line}"));
        let prefix = "Test unit written to ";
        match lines.iter().find_map(|line| line.split_once(prefix)) {
            Some((_, crash)) => println!(
                "{0}: failed, see above. Again: {1} {crash}\nOnce it is put right: keep {crash} in tests/corpus/{0}/ under a \
                 name that says what it is",
                self.name,
                self.binary.display()
            ),
            None => println!("{}: `{}` failed ({status})", self.name, describe(&fuzzer)),
        }
        Ok(false)
    }

    /// Replaces the files of the corpus that the fuzzer named with the smallest set that has the same coverage.
    fn minimize(&self, folder: &Path) -> Result<()> {
        let minimized = folder.join(&self.name);
        if minimized.exists() {
            fs::remove_dir_all(&minimized)
                .with_context(|| format!("cannot remove {}", minimized.display()))?;
        }
        create(&minimized)?;
        let mut merge = Command::new(&self.binary);
        merge.args(["-set_cover_merge=1", "-use_counters=0", "-max_len=1024"]).arg(&minimized);
        run(merge.args([&self.corpus, &self.seeds, &self.found]).stderr(Stdio::null()))?;
        for path in files(&self.corpus)?.iter().filter(|path| is_hash(path)) {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let files = files(&minimized)?;
        for path in &files {
            let name = path.file_name().expect("a file has a name");
            fs::copy(path, self.corpus.join(name))
                .with_context(|| format!("cannot copy {} to {}", path.display(), self.corpus.display()))?;
        }
        println!("{:10} {} files in tests/corpus", "", files.len());
        Ok(())
    }
}

/// Whether the fuzzer named this file, by the SHA-1 of its content.
fn is_hash(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() == 40 && name.iter().all(u8::is_ascii_hexdigit)
}

/// Returns the files in a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>();
    list().with_context(|| format!("cannot list {}", folder.display()))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// Statistics of a run, from the output of libFuzzer.
#[derive(Default)]
struct Stats {
    executions: String,
    per_second: String,
    coverage: String,
    features: String,
}

impl Stats {
    fn read(lines: &[String]) -> Self {
        let mut stats = Self::default();
        for line in lines {
            // #1234 DONE   cov: 56 ft: 78 corp: 9/123b lim: 4096 exec/s: 617 rss: 40Mb
            let mut words = line.split_whitespace();
            if line.starts_with('#') {
                while let Some(word) = words.next() {
                    match word {
                        "cov:" => stats.coverage = words.next().unwrap_or_default().to_owned(),
                        "ft:" => stats.features = words.next().unwrap_or_default().to_owned(),
                        _ => {}
                    }
                }
            } else if let (Some(name), Some(value)) = (words.next(), words.next()) {
                match name {
                    "stat::number_of_executed_units:" => stats.executions = value.to_owned(),
                    "stat::average_exec_per_sec:" => stats.per_second = value.to_owned(),
                    _ => {}
                }
            }
        }
        stats
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>9} executions {:>7}/s {:>6} edges {:>6} features",
            self.executions, self.per_second, self.coverage, self.features
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_understood() {
        let said = "INFO: seed corpus: files: 7\n#8\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 40Mb\nrubbish\n\
                    #900\tDONE   cov: 56 ft: 78 corp: 9/123b lim: 4096 exec/s: 617 rss: 40Mb\n\
                    stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     617\n";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let line = Stats::read(&lines).to_string();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["900", "executions", "617/s", "56", "edges", "78", "features"]);
    }

    #[test]
    fn names_by_hand_are_no_hashes() {
        assert!(is_hash(Path::new("x/da39a3ee5e6b4b0d3255bfef95601890afd80709")));
        assert!(!is_hash(Path::new("x/da39a3ee5e6b4b0d3255bfef95601890afd8070")));
        assert!(!is_hash(Path::new("x/a-cookie-behind-a-length-of-one-0123456789")));
    }

    #[test]
    fn a_target_that_is_not_there_is_named() {
        assert!(targets(&[]).unwrap().contains(&"frame".to_owned()));
        assert_eq!(targets(&["frame".to_owned()]).unwrap(), ["frame"]);
        let error = targets(&["none".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("there is no fuzz target none: there are cli, "), "{error}");
    }
}
