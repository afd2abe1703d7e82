//! kftray-testkit
