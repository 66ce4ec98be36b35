package main

import "context"

func benchNodes(ctx context.Context, name string) error { return nil }
