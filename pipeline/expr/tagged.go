package expr

import (
	"fmt"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"millrace/pipeline/codec"
)

// tagged checks how the expression uses encrypted fields ([codec.PII]). Their
// plaintext is not available, so an expression may only copy them unchanged to a
// field with the same tag, or compare them with null.
func (c *compiler) tagged(e celast.Expr) {
	allowed := map[int64]bool{}
	var copied func(e celast.Expr)
	copied = func(e celast.Expr) {
		if l := c.leafOf(e); l != nil {
			allowed[e.ID()] = c.want.node != nil && c.want.node.Tag == l.node.Tag
		} else if e.Kind() == celast.CallKind && e.AsCall().FunctionName() == operators.Conditional {
			copied(e.AsCall().Args()[1])
			copied(e.AsCall().Args()[2])
		}
	}
	copied(e)
	celast.PreOrderVisit(e, celast.NewExprVisitor(func(x celast.Expr) {
		if x.Kind() == celast.CallKind && x.AsCall().FunctionName() == isNull {
			allowed[x.AsCall().Args()[0].ID()] = true
			return
		}
		l := c.leafOf(x)
		if l == nil || l.node.Tag == "" || allowed[x.ID()] {
			return
		}
		use := c.want.of + " cannot read it"
		if c.want.node != nil {
			use = fmt.Sprintf("%s of %s cannot be computed from it", c.want.field, c.want.of)
		}
		c.fail(c.start(x), fmt.Sprintf("it can be copied to a field with %q: %q, and compared with null", codec.PII, l.node.Tag), "%s is encrypted: %s", l.path, use)
	}))
}
