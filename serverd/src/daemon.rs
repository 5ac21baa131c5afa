//! x
pub async fn run(_: crate::config::Config) -> anyhow::Result<()> { anyhow::bail!("not yet") }
