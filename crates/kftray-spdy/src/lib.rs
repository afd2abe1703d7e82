//! kftray-spdy
