//! Running other programs: every command has a log file, a time limit, and an error that names both.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Errors are sentences for a human.
pub type Result<T> = std::result::Result<T, String>;

/// No single command of ours takes longer on two cores.
const TIME_LIMIT: Duration = Duration::from_secs(45 * 60);

/// What a finished program printed.
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Root of the checkout this command was started from.
pub fn repo() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().expect("xtask lies inside the repository").to_path_buf()
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from)
}

/// The cargo that started us, so that toolchain choices carry over.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(repo());
    cargo
}

/// The command as one would type it, without its environment.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect::<Vec<_>>().join(" ")
}

/// The command with the variables that it sets and those that it takes away, to be copied into a shell.
pub fn shown_with_environment(command: &Command) -> String {
    let (mut set, mut taken) = (String::new(), String::new());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => set += &format!("{}={} ", name.to_string_lossy(), quoted(value)),
            None => taken += &format!("-u {} ", name.to_string_lossy()),
        }
    }
    let env = if taken.is_empty() { "" } else { "env " };
    format!("{env}{taken}{set}{}", shown(command))
}

/// A word for a shell. Line breaks are written as bash and zsh write them, so that it stays one line.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains('\n') {
        format!("$'{}'", word.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
    } else if word.contains(|c: char| c.is_whitespace() || "'\"$&|;<>*?()#~`\\".contains(c)) || word.is_empty() {
        format!("'{}'", word.replace('\'', "'\\''"))
    } else {
        word.into_owned()
    }
}

/// `1m05s`, `12.3s`.
pub fn seconds(t: Duration) -> String {
    let s = t.as_secs();
    if s >= 60 { format!("{}m{:02}s", s / 60, s % 60) } else { format!("{:.1}s", t.as_secs_f64()) }
}

/// Turns an I/O error into a sentence: `cannot write /x/y: disk full`.
pub fn io<T>(what: &str, path: &Path, r: std::io::Result<T>) -> Result<T> {
    r.map_err(|e| format!("cannot {what} {}: {e}", path.display()))
}

/// Runs with both outputs on the terminal.
pub fn run_shown(command: &mut Command) -> Result<()> {
    run_shown_within(command, TIME_LIMIT)
}

/// [`run_shown`] with a time limit of its own.
pub fn run_shown_within(command: &mut Command, limit: Duration) -> Result<()> {
    let name = shown(command);
    let child = command.stdin(Stdio::null()).spawn().map_err(|e| not_started(&name, &e))?;
    let status = wait(child, &name, limit)?;
    if status.success() { Ok(()) } else { Err(format!("`{name}` failed ({})", how_it_ended(status))) }
}

/// Runs with both outputs in a log file, and prints the last line that looks like progress now and then.
pub fn run_logged(command: &mut Command, label: &str, log: &Path) -> Result<()> {
    let name = shown(command);
    let mut file = io("write", log, File::create(log))?;
    let _ = writeln!(file, "$ {name}");
    let errors = io("write", log, file.try_clone())?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let mut child = command.spawn().map_err(|e| not_started(&name, &e))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let label = label.to_string();
    let copier = thread::spawn(move || copy_with_progress(stdout, file, &label));
    let status = wait(child, &name, TIME_LIMIT)?;
    let _ = copier.join();
    if status.success() { Ok(()) } else { Err(failed(&name, status, log)) }
}

/// Runs with both outputs in a log file; how it ended, or why it did not within its time.
pub fn run_into(command: &mut Command, log: &Path, limit: Duration) -> Result<ExitStatus> {
    let name = shown(command);
    let mut file = io("write", log, File::create(log))?;
    io("write", log, writeln!(file, "$ {name}"))?;
    let errors = io("write", log, file.try_clone())?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors);
    let child = command.spawn().map_err(|e| not_started(&name, &e))?;
    wait(child, &name, limit)
}

/// Runs to the end, keeping both outputs and a copy of them in a log file; a failure is an error.
pub fn capture(command: &mut Command, log: &Path) -> Result<Output> {
    capture_within(command, log, TIME_LIMIT)
}

/// [`capture`] with a time limit of its own.
pub fn capture_within(command: &mut Command, log: &Path, limit: Duration) -> Result<Output> {
    let name = shown(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| not_started(&name, &e))?;
    let stdout = collect(child.stdout.take().expect("stdout is piped"));
    let stderr = collect(child.stderr.take().expect("stderr is piped"));
    let status = wait(child, &name, limit);
    let output = Output { stdout: stdout.join().unwrap_or_default(), stderr: stderr.join().unwrap_or_default() };
    let text = format!("$ {name}\n--- stdout\n{}\n--- stderr\n{}\n", output.stdout, output.stderr);
    io("write", log, fs::write(log, text))?;
    let status = status?;
    if status.success() { Ok(output) } else { Err(failed(&name, status, log)) }
}

/// First line a small query prints (`gcc --version`), or None when it cannot run.
pub fn first_line(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).output().ok().filter(|o| o.status.success())?;
    String::from_utf8_lossy(&out.stdout).lines().next().map(str::to_string)
}

/// Where a program lies on PATH.
pub fn which(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join(name)).find(|p| p.is_file())
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Ninja prints `[12/345] Building ...`: show that every 20 seconds.
fn copy_with_progress(from: impl Read, mut log: File, label: &str) {
    let start = Instant::now();
    let mut last = start;
    for line in BufReader::new(from).split(b'\n').map_while(std::io::Result::ok) {
        let _ = log.write_all(&line).and_then(|()| log.write_all(b"\n"));
        if last.elapsed() < Duration::from_secs(20) {
            continue;
        }
        let line = String::from_utf8_lossy(&line);
        if let Some(step) = line.strip_prefix('[').and_then(|l| l.split_once(']')).map(|(step, _)| step) {
            last = Instant::now();
            println!("    {label}: {step} ({})", seconds(start.elapsed()));
        }
    }
}

fn wait(mut child: Child, name: &str, limit: Duration) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().map_err(|e| format!("cannot wait for `{name}`: {e}"))? {
            return Ok(status);
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("`{name}` was stopped after {}: it hangs", seconds(limit)));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn not_started(name: &str, e: &std::io::Error) -> String {
    format!("`{name}` could not be started: {e}")
}

/// `exit code 1`, or the signal.
pub fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(4) => "killed by SIGILL: an instruction this CPU or its permissions do not have".into(),
        Some(11) => "killed by SIGSEGV".into(),
        Some(n) => format!("killed by signal {n}"),
        None => format!("exit code {}", status.code().unwrap_or(-1)),
    }
}

fn failed(name: &str, status: ExitStatus, log: &Path) -> String {
    let text = fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n    | ");
    format!("`{name}` failed ({})\n    | {tail}\n  all of its output: {}", how_it_ended(status), log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_names_itself_its_end_and_its_log() {
        let log = std::env::temp_dir().join(format!("xtask-util-{}.log", std::process::id()));
        let error = capture(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]), &log).err().unwrap();
        fs::remove_file(&log).unwrap();
        assert!(error.contains("exit code 3") && error.contains("broken") && error.contains(log.to_str().unwrap()));
    }

    #[test]
    fn a_command_that_runs_into_a_log_says_how_it_ended() {
        let log = std::env::temp_dir().join(format!("xtask-into-{}.log", std::process::id()));
        let run =
            |script: &str| run_into(Command::new("sh").args(["-c", script]), &log, Duration::from_secs(60)).unwrap();
        assert_eq!(run("echo out; echo err >&2; exit 77").code(), Some(77));
        assert_eq!(fs::read_to_string(&log).unwrap(), "$ sh -c 'echo out; echo err >&2; exit 77'\nout\nerr\n");
        assert_eq!(how_it_ended(run("kill -11 $$")), "killed by SIGSEGV");
        fs::remove_file(&log).unwrap();
    }

    #[test]
    fn a_hanging_command_is_stopped() {
        let log = std::env::temp_dir().join(format!("xtask-hang-{}.log", std::process::id()));
        let error = capture_within(Command::new("sleep").arg("60"), &log, Duration::from_millis(50)).err().unwrap();
        fs::remove_file(&log).unwrap();
        assert!(error.contains("it hangs"));
    }

    #[test]
    fn a_shown_command_can_be_pasted() {
        assert_eq!(shown(Command::new("sh").args(["-c", "echo it's"])), r"sh -c 'echo it'\''s'");
        let mut command = Command::new("sh");
        command.args(["-c", "printf '%s' \"$A $B\"\n"]).env("A", "1 2").env_remove("B");
        let line = shown_with_environment(&command);
        assert_eq!(line, r#"env -u B A='1 2' sh -c $'printf \'%s\' "$A $B"\n'"#);
        let output = Command::new("bash").args(["-c", &line]).env("B", "3").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1 2 ");
    }

    #[test]
    fn times_read_naturally() {
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.2s");
        assert_eq!(seconds(Duration::from_secs(65)), "1m05s");
    }
}
