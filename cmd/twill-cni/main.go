// Twill-cni is the CNI plugin of Twill: container runtimes execute it to attach pods. See package cni.
package main

import "github.com/twill-net/twill/cni"

func main() { cni.Main() }
