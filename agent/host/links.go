package host

import "context"

// Links are the verbs of this package on pod interfaces, as methods, for those who take an interface.
type Links struct{ Unlinker }

// AddVeth is the function AddVeth.
func (*Links) AddVeth(ctx context.Context, v Veth) error { return AddVeth(ctx, v) }

// CheckVeth is the function CheckVeth.
func (*Links) CheckVeth(v Veth) []string { return CheckVeth(v) }

// Veths is the function Veths.
func (*Links) Veths(prefix string) ([]string, error) { return Veths(prefix) }
