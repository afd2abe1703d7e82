//go:build kubelet_without_context

package main

import (
	"context"

	"github.com/spf13/cobra"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// Up to 1.31 the kubelet's command makes its own context.
func newKubelet(context.Context) *cobra.Command { return kubelet.NewKubeletCommand() }
