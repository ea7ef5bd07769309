//! `cargo e2e …`: see `cargo e2e --help`.

fn main() -> std::process::ExitCode {
    match e2e::cli::run() {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
