"""The image in the examples of the API's description."""

# a red heart on white, 128 pixels a side, drawn by serve_app.demo.renderer
EXAMPLE_IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAIAAAACAAQMAAAD58POIAAAABlBMVEXy+fnZMy1wm10mAAAA5ElEQVR42u2SO44D"
    "IRBE3+KRPdnODeybrG/mORpH4QiEBIjeAKZpo7VWDiw7mIpaRVV/gR07PgOnBOdgiB8BSQA4AK6sB45GIRJOIl1x"
    "gGUG3y0wLy1wABNMF7goMdfHxVrc1Vqaf9aqZxERqZ05aNlgsjkUryParvITlljj9FhR912FfytyjYMSpRIe4Kve"
    "BY1NDnMo1m503Z1NrW8RkWgUqQ/g+uDBEEUTtT4QDVsf69bGRnjtv9eNd4qka3O68HBHlK2q+ZjD5m5luIsfiZAH"
    "IqaBSPG//5HDQBT/yLJjx/vxC/RNSE9IIxqSAAAAAElFTkSuQmCC"
)
