# The Astro CLI builds this file (it hard-codes its name and place). Images for other deployments are in docker/.
FROM astrocrpublic.azurecr.io/runtime:3.3-2

# The base image has copied the project and installed packages.txt and requirements.txt by now. Installing the project
# itself registers the plugin and the connection types, which are entry points.
RUN pip install --no-cache-dir --no-deps -e .
