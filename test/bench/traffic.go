package main

import "context"

func benchTraffic(ctx context.Context, name string) error { return nil }
