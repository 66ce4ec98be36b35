package ovs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// txn is a transaction being written. Nothing is sent before commit.
type txn struct {
	ops   []ovsdb.Operation
	named int
}

// rejected is an answer of the server: it has understood, and will not.
type rejected struct{ error }

func (r rejected) Unwrap() error { return r.error }

func (t *txn) insert(table string, row ovsdb.Row) ovsdb.UUID {
	t.named++
	id := fmt.Sprintf("row%d", t.named)
	t.ops = append(t.ops, ovsdb.Operation{Op: ovsdb.OperationInsert, Table: table, Row: row, UUIDName: id})
	return ovsdb.UUID{GoUUID: id}
}

func (t *txn) update(table, uuid string, row ovsdb.Row) {
	t.ops = append(t.ops, ovsdb.Operation{Op: ovsdb.OperationUpdate, Table: table, Row: row, Where: whereUUID(uuid)})
}

func (t *txn) mutate(table, uuid string, m ...ovsdb.Mutation) {
	t.ops = append(t.ops, ovsdb.Operation{Op: ovsdb.OperationMutate, Table: table, Mutations: m, Where: whereUUID(uuid)})
}

func whereUUID(uuid string) []ovsdb.Condition {
	return []ovsdb.Condition{ovsdb.NewCondition("_uuid", ovsdb.ConditionEqual, ovsdb.UUID{GoUUID: uuid})}
}

// putKeys overwrites keys of a map column. Inserting a key that exists is silently ignored (RFC 7047
// §5.1), hence the deletion before it.
func putKeys(column string, m map[string]string) []ovsdb.Mutation {
	return []ovsdb.Mutation{
		*ovsdb.NewMutation(column, ovsdb.MutateOperationDelete, setOf(slices.Sorted(maps.Keys(m))...)),
		*ovsdb.NewMutation(column, ovsdb.MutateOperationInsert, mapOf(m)),
	}
}

func setOf[T any](values ...T) ovsdb.OvsSet {
	s := ovsdb.OvsSet{GoSet: []any{}}
	for _, v := range values {
		s.GoSet = append(s.GoSet, v)
	}
	return s
}

func mapOf[K comparable, V any](m map[K]V) ovsdb.OvsMap {
	o := ovsdb.OvsMap{GoMap: make(map[any]any, len(m))}
	for k, v := range m {
		o.GoMap[k] = v
	}
	return o
}

// commit sends the transaction, once the connection is there. A nil error means that every operation
// succeeded, and that the rows that are read show it: the server sends us our own change before the
// answer, and libovsdb takes them in that order. A transaction without operations is not sent.
func (d *DB) commit(ctx context.Context, t *txn) error {
	if len(t.ops) == 0 {
		return nil
	}
	var s *session
	if err := d.await(ctx, func() (bool, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		s = d.session
		return d.lost == nil, nil
	}); err != nil {
		return d.because(err)
	}
	results, err := s.client.Transact(ctx, t.ops...)
	if err != nil {
		return fmt.Errorf("OVSDB at %s: transaction: %w", d.config.Endpoint, err)
	}
	if failed, err := ovsdb.CheckOperationResults(results, t.ops); err != nil {
		for _, f := range failed {
			err = f // the first says it all: the others were not tried
			break
		}
		return rejected{fmt.Errorf("OVSDB refused the transaction: %w", err)}
	}
	d.transactions.Add(1)
	for i, op := range t.ops {
		if (op.Op == ovsdb.OperationUpdate || op.Op == ovsdb.OperationMutate) && results[i].Count == 0 {
			return rejected{fmt.Errorf("a row of table %s was deleted by somebody else meanwhile; try again", op.Table)}
		}
	}
	return nil
}

// change commits a change of these ports, together with others.
func (d *DB) change(ctx context.Context, names []string, build func(*txn) error) error {
	err := d.batch.do(ctx, names, build)
	if err != nil && ctx.Err() != nil {
		err = d.because(err)
	}
	return err
}

// because adds to the error of a wait why it took so long, when that is the connection.
func (d *DB) because(err error) error {
	if lost := d.Alive(); lost != nil {
		return fmt.Errorf("%w (%w)", err, lost)
	}
	return err
}

// commitCounted is commit, with a number by which ovs-vswitchd tells how far it has come: it copies
// next_cfg to cur_cfg once it has acted (ovs-vswitchd.conf.db(5), Open_vSwitch).
func (d *DB) commitCounted(ctx context.Context, t *txn) error {
	if r := d.root(); r != nil && len(t.ops) > 0 {
		t.mutate(tableRoot, r.UUID, *ovsdb.NewMutation("next_cfg", ovsdb.MutateOperationAdd, 1))
	}
	return d.commit(ctx, t)
}

// paceTimeout bounds how long changes are held back for ovs-vswitchd, which may be down. It takes
// 100 ms with 1,000 ports.
const paceTimeout = 500 * time.Millisecond

// pace returns when ovs-vswitchd has acted on everything that was committed, or paceTimeout has passed.
func (d *DB) pace(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, paceTimeout)
	defer cancel()
	var want int
	if r := d.root(); r != nil {
		want = r.NextCfg
	}
	_ = d.await(ctx, func() (bool, error) { // the only error is that of ctx
		r := d.root()
		return r == nil || r.CurCfg >= want, nil
	})
}
