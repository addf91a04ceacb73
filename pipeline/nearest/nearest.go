// Package nearest finds the known name that a misspelled one probably means.
package nearest

import "strings"

// Name returns the known name that is most similar to a given one, whatever the case of the
// letters; "" if none is similar: if more than a third of the letters differ. Of names that
// are equally similar, it returns the first.
func Name(given string, known []string) string {
	best, limit := "", 1+max(1, len(given)/3)
	for _, name := range known {
		if d := Distance(given, name, limit); d < limit {
			best, limit = name, d
		}
	}
	return best
}

// Distance returns the number of insertions, deletions, replacements and swaps of adjacent
// bytes that turn a into b (the optimal string alignment distance), at most limit. The case
// of letters does not count.
func Distance(a, b string, limit int) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return min(prev[len(b)], limit)
}
