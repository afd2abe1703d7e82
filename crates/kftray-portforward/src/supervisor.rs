//! The one task that owns a forward.

use std::sync::Arc;

use crate::engine::Process;
use crate::forward::About;

pub(crate) async fn run(process: Arc<Process>, about: Arc<About>) {
    let mut stop = about.stop.subscribe();
    let _resolution = process.resolve.follow(&about.config.target, &about.config.remote_port);
    if stop.wait_for(Option::is_some).await.is_ok() {
        about.publish_stopped();
    }
}
