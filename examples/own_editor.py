"""An editing method of one's own: every edited layer makes the whole move that is left.

    python examples/own_editor.py

edits one fact with it. In a federation its place is a file of `fedit_app/editing` and a line of
`fedit_app/editing/editors.py`; then `fedit run -c editor=direct` runs it.
"""

from fedit_app import Editor, EditRequest
from fedit_app.editing.editors import EDITORS
from fedit_app.editing.memit import value_site
from fedit_app.editing.method import EditingMethod


def changes(model, places, settings, values):
    """Layer i's key, and the way from the state that the layers before it have reached to v*."""

    def wanted(i, subjects):
        seen = subjects.see(settings.layers[i], until=settings.layers[-1])
        return seen.key, values.v_star[:, -1] - seen.state

    return wanted


EDITORS["direct"] = EditingMethod(value_site, changes)

if __name__ == "__main__":
    prompt = "The medical journal {} is published in the city of"
    editor = Editor.from_pretrained("smollm2-135m", "direct")
    print(editor.edit([EditRequest("1", "The Lancet", prompt, "Edinburgh")]))
