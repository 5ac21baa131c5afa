//! The agent's program.

fn main() -> std::process::ExitCode {
    rssh_agentd::cli::main()
}
