package topology

import (
	"go.yaml.in/yaml/v4"
)

// Resolved returns what an alias stands for.
func Resolved(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
