package trace

import (
	"encoding/json"
	"errors"
	"fmt"

	"millrace/pipeline/cli"
)

// maxShown limits the length of a value in the result of [Changes].
const maxShown = 200

// Changes returns the differences between two JSON values, each as "path: before ->
// after". It returns nil if one of the values is not valid JSON.
func Changes(before, after json.RawMessage) []string {
	a, errA := cli.ParseJSON(before)
	b, errB := cli.ParseJSON(after)
	if errors.Join(errA, errB) != nil {
		return nil
	}
	var out []string
	walkChanges("", a, b, func(path string, a, b any) {
		out = append(out, fmt.Sprintf("%s: %s -> %s", path, shown(a), shown(b)))
	})
	return out
}

// noValue is the value of a field that only the other object has.
type noValue struct{}

func shown(v any) string {
	if _, none := v.(noValue); none {
		return "nothing"
	}
	return cli.Clip(cli.CompactJSON(v), maxShown)
}

// walkChanges calls f for each difference. It descends into objects, not into arrays.
func walkChanges(path string, a, b any, f func(path string, a, b any)) {
	x, xok := a.(cli.OrderedJSON)
	y, yok := b.(cli.OrderedJSON)
	if !xok || !yok {
		if cli.CompactJSON(a) != cli.CompactJSON(b) {
			f(path, a, b)
		}
		return
	}
	for _, field := range x {
		if other, ok := y.Get(field.Name); ok {
			walkChanges(join(path, field.Name), field.Value, other, f)
		} else {
			f(join(path, field.Name), field.Value, noValue{})
		}
	}
	for _, field := range y {
		if _, ok := x.Get(field.Name); !ok {
			f(join(path, field.Name), noValue{}, field.Value)
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
