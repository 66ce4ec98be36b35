package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// sample is how long each of some operations took.
type sample []time.Duration

// quantile is the nearest-rank quantile, q from 0 to 1; 0 of an empty sample.
func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// median of numbers.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(v))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// ms writes a duration in milliseconds with three significant digits.
func ms(d time.Duration) string { return digits(float64(d) / float64(time.Millisecond)) }

func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// table prints Markdown.
type table struct{ columns int }

func newTable(title string, columns ...string) table {
	fmt.Printf("\n### %s\n\n", title)
	t := table{columns: len(columns)}
	t.row(columns...)
	fmt.Println("|" + strings.Repeat("---|", len(columns)))
	return t
}

func (t table) row(cells ...string) { fmt.Println("| " + strings.Join(cells, " | ") + " |") }
