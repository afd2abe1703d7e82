//! kftray-kube
