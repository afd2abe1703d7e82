//! `kftui demo`
use crate::cli::DemoArgs;
use crate::exit::Exit;
pub(crate) async fn run(_args: DemoArgs) -> anyhow::Result<Exit> {
    std::future::ready(Ok(Exit::Failed)).await
}
