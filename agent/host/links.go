package host

import "context"

// Links are the verbs of this package on pod interfaces, as methods, for those who take an interface.
type Links struct {
	Unlinker
	// ProcSys is that of every Veth.
	ProcSys string
}

// AddVeth is the function AddVeth.
func (l *Links) AddVeth(ctx context.Context, v Veth, there func()) error {
	v.ProcSys = l.ProcSys
	return AddVeth(ctx, v, there)
}

// CheckVeth is the function CheckVeth.
func (*Links) CheckVeth(v Veth) []string { return CheckVeth(v) }

// Veths is the function Veths.
func (*Links) Veths(prefix string) ([]string, error) { return Veths(prefix) }
