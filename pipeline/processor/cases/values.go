package cases

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"millrace/pipeline/cli"
	"millrace/pipeline/topology"
)

// yamlValue returns the value of a node in the types of encoding/json, with numbers
// as json.Number and times as strings.
func yamlValue(n *yaml.Node) any {
	n = topology.Resolved(n)
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			m[topology.Resolved(n.Content[i]).Value] = yamlValue(n.Content[i+1])
		}
		return m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			list[i] = yamlValue(item)
		}
		return list
	}
	switch n.Tag {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		if number, ok := jsonNumber(n.Value); ok {
			return number
		}
	}
	return n.Value
}

// jsonNumber converts a YAML number to JSON, with all its digits. It returns false for
// .nan and .inf, which JSON lacks.
func jsonNumber(text string) (json.Number, bool) {
	if number := plainNumber(text); json.Valid([]byte(number)) {
		return json.Number(number), true
	}
	if n, err := strconv.ParseInt(text, 0, 64); err == nil {
		return json.Number(strconv.FormatInt(n, 10)), true
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || x != x || x > 1e308 || x < -1e308 {
		return "", false
	}
	return json.Number(strconv.FormatFloat(x, 'g', -1, 64)), true
}

// plainNumber returns +1_000.5, .5 and 5. of YAML in JSON's form.
func plainNumber(text string) string {
	text = strings.ReplaceAll(strings.TrimPrefix(text, "+"), "_", "")
	sign := ""
	if rest, ok := strings.CutPrefix(text, "-"); ok {
		sign, text = "-", rest
	}
	if strings.HasPrefix(text, ".") {
		text = "0" + text
	}
	return sign + strings.TrimSuffix(text, ".")
}

// nodeAt returns the node at a path such as data.items[1].price, or the innermost
// existing node around that path.
func nodeAt(n *yaml.Node, path string) *yaml.Node {
	path = strings.NewReplacer("[", ".[", "]", "").Replace(path)
	for step := range strings.SplitSeq(path, ".") {
		n = topology.Resolved(n)
		next := (*yaml.Node)(nil)
		if index, ok := strings.CutPrefix(step, "["); ok && n.Kind == yaml.SequenceNode {
			if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.Content) {
				next = n.Content[i]
			}
		}
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// yamlNode returns a JSON value as a node. An object with only scalar values is
// written on one line.
func yamlNode(v any) *yaml.Node {
	switch v := v.(type) {
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v)}
	case json.Number:
		tag := "!!int"
		if strings.ContainsAny(v.String(), ".eE") {
			tag = "!!float"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v.String()}
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range v {
			n.Content = append(n.Content, yamlNode(item))
		}
		if len(v) == 0 {
			n.Style = yaml.FlowStyle
		}
		return n
	case cli.OrderedJSON:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Style: yaml.FlowStyle}
		for _, f := range v {
			value := yamlNode(f.Value)
			if value.Kind != yaml.ScalarNode {
				n.Style = 0
			}
			n.Content = append(n.Content, textNode(f.Name), value)
		}
		return n
	}
	return textNode(fmt.Sprint(v))
}

func textNode(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}
