//! `cargo e2e …`: see `cargo e2e --help`.

fn main() -> std::process::ExitCode {
    if let Some(error) = e2e::fuzz::as_compiler() {
        eprintln!("error: start the compiler: {error}");
        return std::process::ExitCode::FAILURE;
    }
    match e2e::cli::run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
